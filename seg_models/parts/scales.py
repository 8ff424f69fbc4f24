"""One network looks at an image at several scales: what every way of mixing the looks needs.

Shapes: N batch, C channels, K classes, H W pixels, h w cells.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn import functional

from seg_models.names import did_you_mean
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.losses import upsampled_cross_entropy
from seg_models.parts.resample import upsample_to
from seg_models.parts.rmi import region_mutual_information, upsampled_binary_cross_entropy

Criterion = Literal["ce", "rmi"]
"""ce: the losses of the network that looks. rmi: half binary cross-entropy, half region mutual information."""

SCALE = "scale_"
"""What the names of class scores of single scales begin with, among the extras of an output."""


class Look(NamedTuple):
    """What a network says about an image at one scale."""

    output: SemanticOutput
    features: Tensor
    """(N, C, h, w) what the watched module was given."""


def look(inner: SegModel, images: Tensor, *, watched: nn.Module, at_pixels: bool = False) -> Look:
    """Class scores of a network, in float32, and what one of its modules was given.

    Args:
        inner: the network.
        images: (N, 3, H, W).
        watched: a module of the network that is called once per forward pass.
        at_pixels: enlarge class scores to the size of the images.
    """
    seen: list[Tensor] = []
    handle = watched.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        output = inner(images)
    finally:
        handle.remove()
    assert len(seen) == 1, f"the watched module was called {len(seen)} times"
    logits, *aux = (scores.float() for scores in (output.logits, *output.aux))
    if at_pixels:
        logits, *aux = (resize_like(scores, images) for scores in (logits, *aux))
    return Look(SemanticOutput(logits, aux=tuple(aux), extras=output.extras), seen[0])


def class_dependent(inner: SegModel) -> tuple[str, ...]:
    """The prefixes of a network that is the module `inner` of another."""
    return tuple(f"inner.{prefix}" for prefix in inner.class_dependent)


def watched_module(inner: SegModel, name: str | None) -> nn.Module:
    """The module of this name; by default the first convolution of `class_dependent`, which makes the class scores.

    Raises:
        ValueError: there is no such module, or it holds no convolution.
    """
    names = [name] if name is not None else [prefix.rstrip(".") for prefix in inner.class_dependent]
    modules = dict(inner.named_modules())
    found: nn.Module | None = next(
        (modules[one] for one in names if one in modules and _has_convolution(modules[one])), None
    )
    if found is None:
        near = did_you_mean(names[0], modules) if names else ""
        raise ValueError(f"looks_at: {type(inner).__name__} has no convolution in {', '.join(names)}{near}")
    return found


def _has_convolution(module: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv2d) for part in module.modules())


def in_channels(module: nn.Module) -> int:
    """Channels that the first convolution of a module takes."""
    return next(part.in_channels for part in module.modules() if isinstance(part, nn.Conv2d))


def scaled(images: Tensor, scale: float) -> Tensor:
    """Images at a factor of their size, bilinear without antialiasing, sides rounded down (as published)."""
    if scale == 1:
        return images
    size = [max(1, int(side * scale)) for side in images.shape[-2:]]
    return functional.interpolate(images.float(), size=size, mode="bilinear", align_corners=False)


def resize_like(maps: Tensor, like: Tensor) -> Tensor:
    """Maps at the size of others, bilinear."""
    return upsample_to(maps, like.shape[-2:])


def scale_losses(
    inner: SegModel, output: SemanticOutput, target: SemanticTarget, *, criterion: Criterion, supervised_weight: float
) -> dict[str, Tensor]:
    """Losses of mixed class scores, and of those of single scales among the extras.

    rmi: ½ `bce` + ½ `rmi`, `aux_bce` for auxiliary scores (published so: no cross-entropy), and what the network
    compares besides class scores.
    """
    own = {name: value for name, value in output.extras.items() if not name.startswith(SCALE)}
    mixed = SemanticOutput(output.logits, aux=output.aux, extras=own)
    losses = inner.loss(mixed, target) if criterion == "ce" else _region_losses(inner, mixed, target)
    pixel_loss = upsampled_cross_entropy if criterion == "ce" else upsampled_binary_cross_entropy
    for name, scores in output.extras.items():
        if name.startswith(SCALE):
            loss = pixel_loss(scores, target.labels, void=target.void, class_weights=target.class_weights)
            losses[f"{name}_{'ce' if criterion == 'ce' else 'bce'}"] = supervised_weight * loss
    return losses


def _region_losses(inner: SegModel, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
    labels, void, weights = target.labels, target.void, target.class_weights

    def binary(scores: Tensor) -> Tensor:
        return upsampled_binary_cross_entropy(scores, labels, void=void, class_weights=weights)

    losses = {
        "bce": 0.5 * binary(output.logits),
        "rmi": 0.5 * region_mutual_information(output.logits, labels, void=void),
    }
    losses.update({_numbered("aux_bce", n): binary(scores) for n, scores in enumerate(output.aux)})
    return {**losses, **_other_losses(inner, output, target)}


def _other_losses(inner: SegModel, output: SemanticOutput, target: SemanticTarget) -> Mapping[str, Tensor]:
    """What the network compares besides class scores; nothing where it has nothing else to compare."""
    if not output.extras:
        return {}
    losses = inner.loss(output, target._replace(mining=None))  # what is not taken below need not choose pixels
    return {name: loss for name, loss in losses.items() if not name.endswith("ce") and not name.startswith("aux")}


def _numbered(name: str, number: int) -> str:
    """aux_bce, aux_2_bce, …"""
    return name if number == 0 else name.replace("_", f"_{number + 1}_", 1)
