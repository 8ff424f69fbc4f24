"""Any Captum attribution as an explainer. Captum itself is imported only when it is used."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from seg_models.spec import did_you_mean, import_object


def without_inplace(model: nn.Module) -> nn.Module:
    """A copy of the model whose activations leave their input alone: DeepLift reads both sides of each."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]  # a plain attribute, which torch's stub cannot say
    return copied


def captum_attribution(
    model: nn.Module,
    image: Tensor,
    *,
    target: int,
    method: str,
    arguments: Mapping[str, Any],
    softmax: bool,
    seed: int,
) -> Tensor:
    """Signed attribution (3, h, w) of one normalised image (3, h, w).

    Attributions of another spatial size (of a layer, say) are brought to the image's (bilinear).

    Args:
        method: class in `captum.attr`, or `package.module:function`; called with the model.
        arguments: passed to `attribute` besides the image and the target.
        softmax: explain the probability instead of the logit.
        seed: of torch's generator while the method runs.

    Raises:
        ValueError: captum is not installed, or the method does not exist or cannot explain this model.
    """
    explained = nn.Sequential(model, nn.Softmax(dim=1)) if softmax else model
    attribution = captum_method(method)(explained)
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(seed)
        warnings.filterwarnings("ignore", module="captum")  # DeepLift announces its hooks on every call
        try:
            values = attribution.attribute(image[None].requires_grad_(), target=target, **_tuples(arguments))
        except (TypeError, AssertionError, RuntimeError) as error:
            raise ValueError(f"captum method {method!r} cannot explain this classifier: {error}") from error
    return _to_image_size(values.detach(), image)


def captum_method(method: str) -> Any:
    """The class or function behind a method's name.

    Raises:
        ValueError: captum is not installed or has no such method.
    """
    if ":" in method:
        return import_object(method)
    try:
        import captum.attr
    except ImportError as error:
        raise ValueError(f"explainer {method!r} needs the package captum: run `pip install captum`") from error
    if method not in captum.attr.__all__:
        raise ValueError(f"captum.attr has no {method!r}{did_you_mean(method, captum.attr.__all__)}")
    return getattr(captum.attr, method)


def _to_image_size(values: Tensor, image: Tensor) -> Tensor:
    if values.shape[-2:] == image.shape[-2:]:
        return values[0]
    return functional.interpolate(values, size=image.shape[-2:], mode="bilinear", align_corners=False)[0]


def _tuples(value: Any) -> Any:
    """Job files know lists, Captum wants tuples."""
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
