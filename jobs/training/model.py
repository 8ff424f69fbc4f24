"""The network of a training run: built, filled, placed on the device and wrapped for several workers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jobs.training.batchnorm import synchronise_batch_norm
from jobs.training.plan import TrainPlan, Worker
from jobs.training.reductions import reduce_in_rank_order
from jobs.training.sharding import shard
from pipelines import storage
from pipelines.labels import LabelSpace
from seg_models.backbones.timm_backbone import move_weights, without_weights
from seg_models.checkpoints import MODEL_FILE, WEIGHTS_FILE, load_model, transfer
from seg_models.outputs import SegModel, SemanticOutput
from seg_models.spec import ModelSpec


def fresh_model(plan: TrainPlan, worker: Worker) -> tuple[SegModel, str | None]:
    """The network a run begins with, and what became of the tensors of `init_from`, as text.

    Every worker builds it from the recipe's seed. Rank 0 goes first, so that published weights are fetched once.

    Raises:
        ValueError: the weights or the checkpoint are missing, or do not fit the architecture.
    """
    torch.manual_seed(plan.recipe.seed)
    if worker.rank != 0:
        dist.barrier()
    spec = local_weights(plan.recipe.model) if plan.init_from is None else without_weights(plan.recipe.model)
    model = spec.build(plan.label_space.num_classes)
    report = None if plan.init_from is None else _fill(model, plan.init_from, plan.label_space)
    if worker.rank == 0 and worker.world > 1:
        dist.barrier()
    return model, report


def local_weights(spec: ModelSpec) -> ModelSpec:
    """The same settings with backbone weights of object stores copied to this machine.

    Raises:
        ValueError: an object is missing.
    """
    return move_weights(spec, lambda ref: str(storage.local_copy(ref)) if storage.is_remote(ref) else ref)


def _fill(model: SegModel, checkpoint: str, label_space: LabelSpace) -> str:
    loaded = load_model(storage.local_copy(storage.normalise(checkpoint), names=(MODEL_FILE, WEIGHTS_FILE)))
    same = LabelSpace.model_validate(loaded.label_space).same_classes(label_space)
    try:
        return transfer(model, loaded.model.state_dict(), same_classes=same).text()
    except ValueError as error:
        theirs, ours = type(loaded.model).__name__, type(model).__name__
        raise ValueError(f"init_from: {checkpoint} ({theirs}; recipe.model is {ours}): {error}") from error


def resumed_model(plan: TrainPlan, state: Mapping[str, Tensor]) -> SegModel:
    """The network of a checkpoint."""
    model = without_weights(plan.recipe.model).build(plan.label_space.num_classes)
    model.load_state_dict(dict(state))
    return model


def place_model(model: SegModel, plan: TrainPlan, worker: Worker) -> SegModel:
    """Synchronise batch norm as the recipe says and move the network to the device.

    Channels-last convolutions are faster on GPUs, and by a quarter for a MobileNet on a CPU.
    """
    if plan.recipe.sync_batch_norm and worker.world > 1:
        synchronise_batch_norm(model, worker.device)
    if plan.channels_last and not is_sharded(plan, worker):  # FSDP splits weights that lie in order
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(worker.device)


def is_sharded(plan: TrainPlan, worker: Worker) -> bool:
    """Whether every worker holds a part of the network."""
    return plan.parallel == "fsdp" and worker.world > 1


def parallel(model: SegModel, plan: TrainPlan, worker: Worker) -> nn.Module:
    """The network whose gradients are averaged over the workers; with FSDP the model itself, which is changed."""
    if plan.compile:
        model.compile()
    if worker.world == 1:
        return model
    if is_sharded(plan, worker):
        shard(model, worker.device)
        return model
    return _replicated(model, plan, worker)


def _replicated(model: SegModel, plan: TrainPlan, worker: Worker) -> DistributedDataParallel:
    wrapped = DistributedDataParallel(
        model,
        device_ids=[worker.device] if worker.device.type == "cuda" else None,
        broadcast_buffers=not plan.recipe.sync_batch_norm,
        gradient_as_bucket_view=True,
    )
    # gloo's sum of two numbers is the same in any order.
    needs_order = plan.deterministic and worker.device.type == "cpu" and worker.world > 2
    if plan.reduce == "ordered" or (plan.reduce == "auto" and needs_order):
        reduce_in_rank_order(wrapped)
    return wrapped


def call(network: nn.Module, images: Tensor) -> SemanticOutput:
    """Forward pass, typed."""
    output: SemanticOutput = network(images)
    return output
