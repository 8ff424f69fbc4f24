"""What a training worker is told: small, picklable, the same for all workers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch

from pipelines import storage
from pipelines.labels import LabelSpace
from pipelines.order import SampleOrder
from pipelines.samples import SampleIndex
from pipelines.sampling import epoch_samples, make_order
from seg_models.checkpoints import MODEL_FILE
from seg_models.recipes.recipe import Recipe

Metric = Literal["miou", "fwiou", "pixel_accuracy", "mean_accuracy"]
"""What validations are compared by; more is better."""


@dataclass(frozen=True)
class Tracking:
    """The MLflow run that the points go to."""

    run_id: str
    """Empty where the driver has not reached the server yet; it notes the id in the run's folder when it has."""
    uri: str


@dataclass(frozen=True)
class ValidationPlan:
    """Validations beside the training."""

    every: int
    """Steps between them."""
    metric: Metric = "miou"
    patience: int | None = None
    """Validations without gain after which the run ends."""


@dataclass(frozen=True)
class TrainPlan:
    """One training run. The recipe and the index say what is computed, the rest says how."""

    run: str
    """Address of the run's folder."""
    recipe: Recipe
    index: SampleIndex
    identity: dict[str, Any]
    init_from: str | None = None
    accumulate: int = 1
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    reduce: Literal["auto", "all_reduce", "ordered"] = "auto"
    threads: int = 1
    """Torch threads of a worker."""
    data_threads: int = 2
    """Threads of a worker that decode and augment, where it has no data workers."""
    data_workers: int = 0
    """Actors of Ray Data that decode and augment, of all workers together; 0: threads of the workers do."""
    deterministic: bool = True
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    log_every: int = 20
    profile_steps: tuple[int, int] | None = None
    tracking: Tracking | None = None
    save_timeout_s: float = 600.0
    """Seconds after which a checkpoint that is still being written is given up."""
    max_workers: int = 1
    """The largest size of the group; `accumulate` belongs to it."""
    validation: ValidationPlan | None = None

    @property
    def label_space(self) -> LabelSpace:
        """The classes of the data."""
        return self.index.label_space

    @cached_property
    def epoch_steps(self) -> float:
        """Steps of an epoch; need not be whole."""
        recipe = self.recipe
        return epoch_samples(recipe.sampling, self.index, steps=recipe.steps) / recipe.global_batch


@dataclass(frozen=True)
class Worker:
    """Who this process is."""

    rank: int
    world: int
    device: torch.device


def usable_sizes(smallest: int, largest: int, *, recipe: Recipe, accumulate: int) -> tuple[int, ...]:
    """The numbers of workers in a range that divide lanes and global batch (with accumulation), in order.

    Raises:
        ValueError: none does, or the accumulation steps do not divide the global batch.
    """
    found: list[int] = []
    for workers in range(largest, smallest - 1, -1):
        size = usable_workers(workers, recipe=recipe, accumulate=accumulate)
        if size == workers:
            found.append(size)
    if not found:
        below = usable_workers(largest, recipe=recipe, accumulate=accumulate)
        raise ValueError(
            f"workers.min = {smallest}: no number of workers from {smallest} to {largest} divides {recipe.lanes} lanes "
            f"and a global batch of {recipe.global_batch} with accumulate = {accumulate}; the next below is {below}"
        )
    return tuple(reversed(found))


def passes_of(plan: TrainPlan, worker: Worker) -> int:
    """Micro-batches of a step. A smaller group on GPUs takes more, so that none needs more memory than in the largest.

    On CPUs their number stays the same, and batch norm sees the same images whatever the size of the group.
    """
    batch = plan.recipe.global_batch
    if worker.device.type != "cuda" or worker.world >= plan.max_workers:
        return plan.accumulate
    largest = batch // (plan.accumulate * plan.max_workers)
    sizes = (size for size in range(largest, 0, -1) if batch % (size * worker.world) == 0)
    return batch // (next(sizes) * worker.world)


def sample_order(recipe: Recipe, index: SampleIndex) -> SampleOrder:
    """The order of the samples of a run.

    Raises:
        ValueError: sampling settings that do not fit the data.
    """
    return make_order(
        recipe.sampling,
        index,
        steps=recipe.steps,
        global_batch=recipe.global_batch,
        lanes=recipe.lanes,
        seed=recipe.seed,
    )


def run_identity(recipe: Recipe, index: SampleIndex, *, init_from: str | None) -> dict[str, Any]:
    """What decides the result of a run: recipe, classes, data and first weights, wherever they lie.

    Raises:
        ValueError: `init_from` holds no model.
    """
    return {
        "recipe": recipe.model_dump(mode="json"),
        "label_space": index.label_space.model_dump(mode="json"),
        "data": [summary.fingerprint for summary in index.parts],
        "parts": [{"name": summary.part.name, "weight": summary.part.weight} for summary in index.parts],
        "init_from": None if init_from is None else _model_hash(init_from),
    }


def _model_hash(checkpoint: str) -> str:
    """SHA-256 of model.json, which holds that of the weights."""
    place = storage.join(storage.normalise(checkpoint), MODEL_FILE)
    if not storage.exists(place):
        raise ValueError(f"init_from: {checkpoint} holds no model ({MODEL_FILE} is missing)")
    return hashlib.sha256(storage.read_bytes(place)).hexdigest()


def class_weights(recipe: Recipe, label_space: LabelSpace) -> torch.Tensor | None:
    """Weights (K,) of the cross-entropy: 1, and `loss.background_weight` for the background class.

    Raises:
        ValueError: a background weight without a background class.
    """
    weight = recipe.loss.background_weight
    if weight is None:
        return None
    if label_space.background is None:
        raise ValueError(
            f"recipe.loss.background_weight = {weight} takes no effect: the label set has no background class "
            "(set `background` in its label space, or remove the weight)"
        )
    weights = torch.ones(label_space.num_classes)
    weights[label_space.background] = weight
    return weights


def usable_workers(workers: int, *, recipe: Recipe, accumulate: int) -> int:
    """The largest number of workers, at most `workers`, that divides lanes and global batch (with accumulation).

    Raises:
        ValueError: the accumulation steps do not divide the global batch, so no number of workers fits.
    """
    if recipe.global_batch % accumulate:
        raise ValueError(
            f"accumulate = {accumulate} does not divide recipe.global_batch = {recipe.global_batch}; "
            f"divisors are {', '.join(str(n) for n in _divisors(recipe.global_batch))}"
        )
    fitting = set(_divisors(recipe.lanes)) & set(_divisors(recipe.global_batch // accumulate))
    return max(number for number in fitting if number <= workers)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
