"""PSSL: images with classes -> a label set of pseudo-labels beside them, on Ray, resumable (specs: PSSL)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pipelines.kept_deciles import codecs_of_pssl
from pipelines.label_run import LabelResult, LabelWork, OnProgress, run_work, shards_in_scope
from pipelines.pssl_plan import Device, check_scores, local_weights, make_plan, pssl_label_space
from pipelines.pssl_spec import EnsembleSpec, PsslSpec, used_classifiers
from pipelines.pssl_worker import PsslWorker
from pipelines.shard_counts import read_stats, summed
from pipelines.shards import ComputeSpec
from pipelines.tables import Dataset
from seg_models.weights.classifiers import ClassifierSpec


@dataclass(frozen=True)
class PsslWork(LabelWork):
    """A label set of pseudo-labels to be written."""

    titles: tuple[str, ...] = ()
    """Names of the classifiers, in order; none for imported labels."""


@dataclass(frozen=True)
class PsslResult(LabelResult):
    """What a run did."""

    skipped_maps: dict[str, int]
    """Explanation maps without signal, by classifier."""


def make_pssl(
    dataset: str,
    *,
    labels: str,
    pssl: PsslSpec,
    ensemble: EnsembleSpec,
    split: str | None = None,
    compute: ComputeSpec | None = None,
    max_rejected: float = 0.5,
    on_progress: OnProgress | None = None,
) -> PsslResult:
    """Write or continue a label set of pseudo-labels; Ray must be running.

    Args:
        dataset: folder or object-store prefix.
        labels: name of the label set.
        split: only this split; default all.
        max_rejected: largest share of rows without a label before the run stops.
        on_progress: called with metrics and the number of images done after every shard.

    Raises:
        ValueError: weights, classes, split or plan do not fit, before work starts; too many rejected rows, later.
        ShardError: a worker failed.
    """
    compute = compute or ComputeSpec()
    work = plan_pssl(dataset, labels=labels, pssl=pssl, ensemble=ensemble, split=split, compute=compute)
    return run_pssl(work, compute=compute, max_rejected=max_rejected, on_progress=on_progress)


def run_pssl(
    work: PsslWork, *, compute: ComputeSpec, max_rejected: float = 0.5, on_progress: OnProgress | None = None
) -> PsslResult:
    """Write or continue the label set that was planned; Ray must be running.

    Raises:
        ValueError: the label set follows another plan, or too many rows are rejected.
        ShardError: a worker failed; finished shards are committed.
    """
    done = run_work(work, compute=compute, max_rejected=max_rejected, on_progress=on_progress)
    skipped = summed(read_stats(work.open(), split=work.split), "skipped")
    return PsslResult(
        **vars(done), skipped_maps={title: skipped[str(index)] for index, title in enumerate(work.titles)}
    )


def plan_pssl(
    dataset: str,
    *,
    labels: str,
    pssl: PsslSpec,
    ensemble: EnsembleSpec,
    split: str | None = None,
    compute: ComputeSpec | None = None,
    keep_deciles: bool = False,
) -> PsslWork:
    """Check everything that can be checked before work starts; nothing is written.

    Args:
        keep_deciles: the deciles of the scores are kept beside the labels.

    Raises:
        ValueError: weights, classes, split or threads do not fit, or the label set follows another plan.
    """
    compute = compute or ComputeSpec()
    _check_threads(pssl, compute)
    opened = Dataset.open(dataset)
    classifiers = used_classifiers(pssl, ensemble)
    check_scores(classifiers, space=opened.info.label_space)
    images = opened.images
    shards = shards_in_scope(opened, images, split)
    device: Device = "cuda" if compute.gpus > 0 else "cpu"
    earlier = opened.labels(labels).info.get("plan") if labels in opened.label_sets() else None
    plan = make_plan(pssl, local_weights(classifiers), images=images.fingerprint(), device=device, earlier=earlier)
    space = pssl_label_space(opened.info.label_space)
    codecs = codecs_of_pssl(opened, labels, keep_deciles=keep_deciles)
    work = PsslWork(
        verb="pssl",
        dataset=opened,
        labels=labels,
        split=split,
        space=space,
        plan=plan.model_dump(mode="json"),
        shards=shards,
        worker=PsslWorker,
        worker_args={
            "images_uri": images.uri,
            "plan": plan,
            "classifiers": classifiers,
            "space": space,
            "fetch": compute.fetch,
            "decile_codec": codecs.get("deciles"),
        },
        titles=_unique_titles(classifiers),
        codecs=codecs,
    )
    work.committed()
    return work


def _check_threads(pssl: PsslSpec, compute: ComputeSpec) -> None:
    if compute.gpus == 0 and pssl.threads > max(1.0, compute.cpus):
        raise ValueError(
            f"pssl.threads = {pssl.threads} needs compute.cpus = {pssl.threads} or more, found {compute.cpus:g}: "
            "give every actor a CPU per thread"
        )


def _unique_titles(classifiers: tuple[ClassifierSpec, ...]) -> tuple[str, ...]:
    """One name per classifier; a second one of the same name gets a number."""
    seen: Counter[str] = Counter()
    titles = []
    for classifier in classifiers:
        seen[classifier.label] += 1
        count = seen[classifier.label]
        titles.append(classifier.label if count == 1 else f"{classifier.label} ({count})")
    return tuple(titles)
