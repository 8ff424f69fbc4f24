"""A training job whose settings and data have been checked, before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jobs.specs import LabelledSplit, TrainJob
from jobs.tracked_run import Run
from jobs.training.checkpoints import checkpoint_steps
from jobs.training.model import local_weights
from jobs.training.plan import (
    Tracking,
    TrainPlan,
    ValidationPlan,
    class_weights,
    run_identity,
    sample_order,
    usable_sizes,
    usable_workers,
)
from jobs.training.resources import Allocation, Node, allocate, allocate_elastic, this_machine
from jobs.training.resume import check_identity, check_same_run
from jobs.training.sampling_table import check_sampling, planned_table, sampling_table
from pipelines import storage
from pipelines.centroids import complete_index, known_index
from pipelines.samples import Part, SampleIndex, build_index
from pipelines.sampling import epoch_samples
from seg_models.backbones.timm_backbone import find_weights
from seg_models.models import build_shapes, describe_model


@dataclass(frozen=True)
class TrainWork:
    """A training job whose settings and data have been checked."""

    job: TrainJob
    run: str
    index: SampleIndex
    identity: dict[str, Any]
    sizes: tuple[int, ...]
    """Numbers of workers that divide lanes and global batch, in order: one, or those of an elastic group."""

    @property
    def workers(self) -> int:
        """The largest number of workers that train."""
        return self.sizes[-1]

    def allocate(self, nodes: Sequence[Node]) -> Allocation:
        """What the workers take of these machines.

        Raises:
            ValueError: it does not fit.
        """
        job = self.job
        if len(self.sizes) > 1:
            return allocate_elastic(
                nodes, sizes=self.sizes, device=job.device, threads=job.threads, data_workers=job.data_workers
            )
        return allocate(
            nodes, workers=self.workers, device=job.device, threads=job.threads, data_workers=job.data_workers
        )


def check_job(job: TrainJob) -> TrainWork:
    """Everything that can be checked before Ray starts.

    Raises:
        ValueError: data that is missing or does not agree, settings that take no effect or do not divide, another
            run under that name.
    """
    run_uri = storage.join(storage.normalise(job.output), job.name)
    index = _index(job.data, key="data")
    class_weights(job.recipe, index.label_space)
    check_sampling(job.recipe, index)
    for summary in index.parts:
        if summary.num_missing_shards:
            print(f"{summary.part}: {summary.num_missing_shards} shards have no labels yet and are left out")
    _check_validation(job, index)
    identity = run_identity(job.recipe, index, init_from=job.init_from)
    return TrainWork(job, run_uri, index, identity, _sizes(job))


def _sizes(job: TrainJob) -> tuple[int, ...]:
    """The numbers of workers that may train; says which of those asked for may not."""
    if not isinstance(job.workers, int):
        sizes = usable_sizes(job.workers.min, job.workers.max, recipe=job.recipe, accumulate=job.accumulate)
        left_out = sorted(set(range(job.workers.min, job.workers.max + 1)) - set(sizes))
        if left_out:
            print(f"{_shape(job)}: groups of {_listed(sizes)} workers train, never {_listed(left_out)}")
        return sizes
    workers = usable_workers(job.workers, recipe=job.recipe, accumulate=job.accumulate)
    if workers < job.workers:
        print(f"workers = {job.workers} does not divide {_shape(job)}: {workers} train, {job.workers - workers} idle")
    return (workers,)


def _shape(job: TrainJob) -> str:
    return (
        f"{job.recipe.lanes} lanes and a global batch of {job.recipe.global_batch} with accumulate = {job.accumulate}"
    )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def find_first_weights(work: TrainWork, *, fetch: bool) -> None:
    """Make sure that the weights the network begins with are here; a run that goes on, or fine-tunes, needs none.

    Raises:
        ValueError: weights are missing, or cannot be fetched.
    """
    if work.job.init_from is None and not checkpoint_steps(work.run):
        find_weights(local_weights(work.job.recipe.model), fetch=fetch)


def _check_validation(job: TrainJob, index: SampleIndex) -> None:
    if job.validate_on is None:
        return
    part = part_of(job.validate_on)
    if not _index([job.validate_on], key="validate_on").label_space.same_classes(index.label_space):
        raise ValueError(f"validate_on: the class list of {part} is not that of the training data")
    if job.validate_on.predictor.hierarchical:
        model = build_shapes(job.recipe.model, index.label_space.num_classes)
        try:
            job.validate_on.predictor.check_model(model)
        except ValueError as error:
            raise ValueError(f"validate_on.{error}") from error


def _index(data: Sequence[LabelledSplit], *, key: str) -> SampleIndex:
    """The samples of a setting; what is wrong with them is told as its fault."""
    try:
        return build_index([part_of(each) for each in data])
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def part_of(data: LabelledSplit) -> Part:
    """The same as the pipelines call it."""
    return Part(**{**data.model_dump(include=set(Part.model_fields)), "dataset": storage.normalise(data.dataset)})


def look_at_labels(work: TrainWork) -> TrainWork:
    """The work with what its sampling must know of the labels; a stage on the running Ray, once per label set.

    Raises:
        ShardError: a label cannot be read.
        ValueError: nothing to draw by class.
    """
    index = complete_index(work.index, work.job.recipe.sampling, compute=work.job.compute, run=work.run)
    sample_order(work.job.recipe, index)
    return replace(work, index=index)


def finished_result(work: TrainWork) -> dict[str, Any] | None:
    """The result of the run if it has ended, else None.

    Raises:
        ValueError: the run of that name was started with other settings.
    """
    place = storage.join(work.run, "result.json")
    if not storage.exists(place):
        check_same_run(work.run, identity=work.identity)
        return None
    table: dict[str, Any] = storage.read_json(place)
    check_identity(work.run, ours=work.identity, theirs=table["identity"])
    return table


def dataset_records(work: TrainWork) -> list[dict[str, str]]:
    """Sources and fingerprints as MLflow shows them."""
    return [
        {
            "name": f"{summary.part.dataset.rpartition('/')[2]}/{summary.part.labels}/{summary.part.split}",
            "source": summary.part.dataset,
            "fingerprint": summary.fingerprint,
            "context": "train",
        }
        for summary in work.index.parts
    ]


def make_plan(work: TrainWork, allocation: Allocation, tracked: Run) -> TrainPlan:
    """What the workers are told."""
    job = work.job
    return TrainPlan(
        run=work.run,
        recipe=job.recipe,
        index=work.index,
        identity=work.identity,
        init_from=None if job.init_from is None else storage.normalise(job.init_from),
        accumulate=job.accumulate,
        precision=job.precision,
        channels_last=job.channels_last,
        compile=job.compile,
        parallel=job.parallel,
        reduce=job.reduce,
        threads=allocation.threads,
        data_threads=allocation.data_threads,
        data_workers=allocation.data_workers,
        deterministic=job.deterministic,
        checkpoint_every=job.checkpoint_every,
        keep_checkpoints=job.keep_checkpoints,
        log_every=job.log_every,
        profile_steps=job.profile_steps,
        tracking=Tracking(tracked.run_id, tracked.tracking_uri) if tracked.tracking_uri else None,
        save_timeout_s=job.save_timeout_s,
        max_workers=work.workers,
        validation=_validation_plan(job),
    )


def _validation_plan(job: TrainJob) -> ValidationPlan | None:
    if job.validate_every is None:
        return None
    return ValidationPlan(job.validate_every, metric=job.validate_metric, patience=job.patience)


def plan_table(work: TrainWork) -> dict[str, Any]:
    """What the job would do: counts, sizes, and whether it fits.

    Raises:
        ValueError: it does not fit this machine.
    """
    recipe = work.job.recipe
    info = describe_model(recipe.model, num_classes=work.index.label_space.num_classes, size=recipe.augment.crop)
    images = recipe.steps * recipe.global_batch
    known = known_index(work.index, recipe.sampling, run=work.run)
    length = None if known is None else epoch_samples(recipe.sampling, known, steps=recipe.steps)
    return {
        "run": work.run,
        "samples": work.index.num_samples,
        "data": parts_table(work),
        "sampling": planned_table(recipe, work.index) if known is None else sampling_table(recipe, known),
        "classes": work.index.label_space.num_classes,
        "steps": recipe.steps,
        "epochs": None if length is None else round(images / length, 3),
        "parameters": info.params,
        "gmac_per_image": round(info.gmac, 3),
        "checkpoint_mb": round(checkpoint_bytes(work, info.params) / 1e6, 1),
        "kept_checkpoints": work.job.keep_checkpoints,
        "workers": work.workers if len(work.sizes) == 1 else list(work.sizes),
        "images_per_worker_and_pass": recipe.global_batch // (work.workers * work.job.accumulate),
        "resources": resources_text(work),
    }


def parts_table(work: TrainWork) -> list[dict[str, Any]]:
    """Rows and samples of every part."""
    return [
        {
            **summary.part.model_dump(),
            "rows": summary.num_rows,
            "samples": summary.num_samples,
            "shards_without_labels": summary.num_missing_shards,
        }
        for summary in work.index.parts
    ]


def checkpoint_bytes(work: TrainWork, params: int) -> int:
    """Size of a checkpoint: weights, averaged ones, and one (SGD) or two (AdamW) float32 values a weight."""
    optimizer = work.job.recipe.optimizer
    copies = 3 if optimizer.kind == "adamw" else 1 + (optimizer.momentum > 0)
    return 4 * params * (copies + (work.job.recipe.ema is not None))


def resources_text(work: TrainWork) -> str:
    """What the workers would take of this machine; a cluster is looked at when the job starts.

    Raises:
        ValueError: it does not fit.
    """
    cluster = work.job.compute.cluster
    if cluster is not None:
        return f"of the cluster at {cluster}, checked when the job starts"
    return work.allocate(this_machine()).text()
