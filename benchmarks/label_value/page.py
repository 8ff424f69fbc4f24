"""The section of `docs/results.md`: the tables, and what is behind each."""

from __future__ import annotations

from pathlib import Path

from benchmarks.label_value.arms import ARMS, AUTO_LABELS, EIGHTH, IMAGENET, PSSL
from benchmarks.label_value.coarse import coarse_space
from benchmarks.label_value.results import Results
from benchmarks.label_value.settings import Settings
from benchmarks.label_value.tables import class_table, comparison, label_table

BEGIN, END = "<!-- label_value: written by the command -->\n", "<!-- /label_value -->\n"

TRAINING = """\
Every arm: `{preset}`, steps of {batch} crops of {crop} from frames with a short side of
{short_side} px times {scale}, mirrored, colours changed by up to {jitter:g}, {uniform_share:.0%} of them drawn by class
(class-uniform sampling); cross-entropy of pixels whose own class has at most {hard:g} (OHEM); AdamW at {lr:g},
{warmup_steps} steps of warm-up, poly; weights averaged over steps (EMA, {ema_decay:g}); one torch thread.
Tested on the 233 frames of `test` at 360×480, one look at a short side of
{short_side} px. mIoU in points; mean ± standard deviation over seeds. A gain is the mean of the differences seed by
seed, ± their deviation. The eighth is every eighth training frame by name, 46 of 367, in all arms and seeds."""

AUTO = """\
### Auto-labels

{steps:,} steps an arm. `self`: labels of the other 321 frames by the network of the first row with the same seed,
looking {teacher_scales} times as large, each also mirrored. `cityscapes`: by the network of the real data that is
best on the eighth, its 19 classes in 11 groups whose probabilities are added up. Pixels below a confidence of
{threshold:g} are void. Of the crops {human_share:.0%} have human labels. In `all` the 367 frames are drawn alike."""

QUALITY = "The auto-labels against the human labels of the same frames, which no arm with them saw:"

PRETRAINING = """\
### PSSL pre-training

Fine-tuned on the eighth for {begin_steps:,} steps, beginning with random weights, with the ImageNet backbone, or with
the whole network pre-trained from that backbone: {pretrain_steps:,} steps of {batch} crops of {pretrain_crop} of the
1,000 ImageNet images, short side {pretrain_short_side} px, AdamW at {pretrain_lr:g}, the backbone at a tenth of that,
background weight 0.1. Labels by 14 real classifiers, `paper` and `fast` with n = {pssl_samples} (`docs/pssl.md` finds
no gain in more); random masks are single pixels. Coarse: the thousand classes in {groups} groups. One pre-training an
arm, several fine-tunings: the deviation is that of fine-tuning."""


def section(results: Results, settings: Settings, *, seeds: range) -> str:
    """All tables, with what is behind each."""
    values = _values(settings)
    parts = [
        TRAINING.format(**values),
        AUTO.format(**values),
        comparison(AUTO_LABELS, results, settings, seeds=seeds, baselines=[EIGHTH]),
        QUALITY,
        label_table(results, seeds=seeds),
        class_table(AUTO_LABELS, results, settings, seeds=seeds),
        PRETRAINING.format(**values),
        comparison(PSSL, results, settings, seeds=seeds, baselines=[IMAGENET, ARMS["random"], ARMS["random-coarse"]]),
        class_table(PSSL, results, settings, seeds=seeds),
    ]
    return "\n\n".join(parts) + "\n"


def _values(settings: Settings) -> dict[str, object]:
    """The settings as the page says them."""
    low, high = settings.scale
    said = {
        "crop": _sides(settings.crop),
        "pretrain_crop": _sides(settings.pretrain_crop),
        "scale": f"{low:g} to {high:g}",
        "teacher_scales": ", ".join(f"{scale:g}" for scale in settings.teacher_scales),
        "groups": coarse_space().num_classes - 1,
    }
    return vars(settings) | said


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def write_section(text: str, page: Path) -> None:
    """Put the text between the two marks of a page.

    Raises:
        ValueError: the page has no marks.
    """
    old = page.read_text()
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: has no lines {BEGIN.strip()} and {END.strip()} to write between")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
