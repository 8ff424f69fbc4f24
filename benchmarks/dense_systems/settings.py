"""What decides the figures, the same for all networks, and the two job files that say it to `segray train`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.study.maps import short_hash


@dataclass(frozen=True)
class Settings:
    """Sizes are in pixels, those of frames before they are scaled."""

    pssl_steps: int = 10
    pssl_crop: tuple[int, int] = (96, 96)
    steps: int = 150
    batch: int = 4
    crop: tuple[int, int] = (128, 160)
    short_side: int = 160
    lr: float = 1e-3
    threads: int = 2
    seed: int = 0

    @property
    def key(self) -> str:
        """Names the folder of all runs with these settings."""
        return short_hash(asdict(self))


JOB = """\
name = "{name}"
device = "cpu"
threads = {threads}
log_every = {log_every}

[[data]]
dataset = "{dataset}"
labels = "{labels}"

[recipe]
steps = {steps}
global_batch = {batch}
seed = {seed}

[recipe.optimizer]
kind = "adamw"
lr = {lr}
weight_decay = 0.01

[recipe.augment]
crop = [{crop[0]}, {crop[1]}]
short_side = {short_side}
scale = [0.75, 1.5]
brightness = 0.2
contrast = 0.2
saturation = 0.2
"""
PSSL_LOSS = """
[recipe.loss]
background_weight = 0.1
"""


def write_jobs(settings: Settings, folder: Path, *, images: Path, frames: Path) -> tuple[Path, Path]:
    """Write `pssl.toml` and `camvid.toml`: all that is equal for every network. Returns their places."""
    images_job = replace(settings, steps=settings.pssl_steps, crop=settings.pssl_crop)
    pssl = _job("pssl", images_job, dataset=images, labels="pssl") + PSSL_LOSS
    camvid = _job("camvid", settings, dataset=frames, labels="human")
    folder.mkdir(parents=True, exist_ok=True)
    places = folder / "pssl.toml", folder / "camvid.toml"
    for place, text in zip(places, (pssl, camvid), strict=True):
        place.write_text(text)
    return places


def _job(name: str, settings: Settings, *, dataset: Path, labels: str) -> str:
    log_every = max(1, settings.steps // 10)
    return JOB.format(name=name, dataset=dataset, labels=labels, log_every=log_every, **asdict(settings))
