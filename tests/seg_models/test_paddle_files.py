"""Paddle's files without Paddle: what `paddle.save` writes is read, and nothing of a file is ever run."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from seg_models.architectures.pspnet import PSPNetSpec
from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.outputs import SegModel
from seg_models.weights.files import load_tensors
from seg_models.weights.layouts import LAYOUTS
from seg_models.weights.paddle_files import NAME_TABLE
from seg_models.weights.published import export_tensors, import_tensors

LAYOUT = LAYOUTS["pspnet_paddleseg"]


def saved(content: object, path: Path, protocol: int = 4) -> Path:
    """A file as `paddle.save` writes one: a pickle."""
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_every_kind_and_order_are_read_as_they_were(protocol: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "linear.weight": generator.normal(size=(3, 5)).astype(np.float32),
        "turned": np.asfortranarray(generator.normal(size=(2, 3, 4))),
        "big_endian": generator.normal(size=6).astype(">f4"),
        "half": generator.normal(size=(2, 2)).astype(np.float16),
        "counts": generator.integers(-9, 9, (4, 1)),
        "bytes": generator.integers(0, 255, 7).astype(np.uint8),
        "flags": np.array([True, False]),
        "one": np.array(2.5, np.float32),
        "none": np.zeros((0, 4), np.float32),
    }
    content = {**arrays, NAME_TABLE: {"linear.weight": "linear_0.w_0"}}
    found = load_tensors(saved(content, tmp_path / "model.pdparams", protocol))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name].numpy(), array)
        found[name] += found[name]  # memory of its own


class Trap:
    """What runs a command when a pickle of it is read without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_file_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    content = {"weight": np.zeros(2, np.float32), "trap": Trap(witness)}
    path = saved(content, tmp_path / "model.pdparams")
    with pytest.raises(ValueError, match=r"model\.pdparams cannot be read: it asks for .*; only numpy arrays are read"):
        load_tensors(path)
    assert not witness.exists()
    pickle.loads(path.read_bytes())  # the trap is a real one
    assert witness.exists()


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "it asks for builtins.eval"),
        (b"cos\nsystem\n(S'true'\ntR.", "it asks for os.system"),
        (b"cnumpy\nload\n(S'x'\ntR.", "it asks for numpy.load"),
        (b"cnumpy.core\nmultiarray\n.", "it asks for numpy.core.multiarray"),
        (b"c_codecs\nencode\n(Vabc\nVzlib\ntR.", "it asks for the encoding 'zlib'"),
        (b"P0\n.", "persistent"),
    ],
)
def test_names_beyond_those_of_arrays_are_refused_before_they_are_imported(
    code: bytes, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.pdparams"
    path.write_bytes(code)
    with pytest.raises(ValueError, match=told) as refusal:
        load_tensors(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"a": np.array([{}], dtype=object)}, "elements of type 'O8' are not read"),
        ({"a": np.zeros(2, "f4,i4")}, "elements of type 'V8' are not read"),
        ({"a": np.zeros(2, complex)}, "elements of type 'c16' are not read"),
        ({"a": [1.0]}, "entry 'a' is no array but a list"),
        ({1: np.zeros(2)}, "entry 1 is no array"),
        ([np.zeros(2)], "no table of named arrays but a list"),
        ({"a": np.array([np.nan])}, "'a' holds NaN or infinity"),
    ],
)
def test_anything_but_named_arrays_of_numbers_is_refused(content: object, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        load_tensors(saved(content, tmp_path / "model.pdparams"))


def test_a_torn_file_or_one_of_another_kind_is_refused(tmp_path: Path) -> None:
    whole = saved({"a": np.zeros(100, np.float32)}, tmp_path / "a.pdparams").read_bytes()
    too_long = b"\x80\x04\x8e" + b"\xff" * 8, b"\x80\x04\x8e" + b"\xff" * 6 + b"\x00\x00"  # bytes that no memory holds
    for number, content in enumerate((whole[:-60], whole[:9], b"", b"PK\x03\x04", *too_long)):
        path = tmp_path / f"{number}.pdparams"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read"):
            load_tensors(path)


def test_bytes_that_do_not_fill_the_shape_are_refused(tmp_path: Path) -> None:
    content = pickle.dumps({"a": np.zeros((2, 3), np.float32)}, protocol=4)
    path = tmp_path / "a.pdparams"
    path.write_bytes(content.replace(b"K\x02K\x03\x86", b"K\x02K\x7f\x86"))
    with pytest.raises(ValueError, match="cannot reshape"):
        load_tensors(path)


def small(*, released_dilation: bool = True) -> SegModel:
    """A PSPNet in PaddleSeg's form that a test can hold."""
    sizes = {"channels": [4, 8, 12, 16], "stem_width": 4}
    backbone = BackboneSpec(
        name="resnet26d", output_stride=8, model_kwargs=sizes, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    spec = PSPNetSpec(
        backbone=backbone, head_channels=8, aux_channels=8, conv_bias=True, released_dilation=released_dilation
    )
    return spec.build(3).eval()


def published() -> dict[str, np.ndarray]:
    """A small checkpoint under PaddleSeg's names, with random numbers everywhere."""
    generator = torch.Generator().manual_seed(0)
    arrays = {}
    for name, value in export_tensors(small(), LAYOUT).items():
        scale = 1 if value.ndim == 1 else (2 / value[0].numel()) ** 0.5
        drawn = scale * torch.randn(value.shape, generator=generator)
        arrays[name] = (drawn.abs() + 0.5 if name.endswith("_variance") else drawn).numpy()
    return arrays


def test_a_checkpoint_of_paddleseg_gives_the_scores_of_paddlesegs_forward_pass(tmp_path: Path) -> None:
    arrays = published()
    tensors = load_tensors(saved(arrays, tmp_path / "model.pdparams"))
    model = small()
    assert import_tensors(model, tensors, LAYOUT).complete
    images = torch.randint(0, 256, (2, 3, 56, 72), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = paddleseg(tensors, (images / 255 - 0.5) / 0.5)
        found = model(images).logits
        model.train()
        other = small(released_dilation=False)
        import_tensors(other, tensors, LAYOUT)
        timms = other(images).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert float((timms - expected).abs().max()) > 0.01 * float(expected.abs().max())


def paddleseg(tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """PSPNet with ResNet-vd of stride 8 as PaddleSeg computes it, from tensors under its names."""
    for number, stride in ((1, 2), (2, 1), (3, 1)):
        x = conv_norm(tensors, f"backbone.conv1_{number}", x, stride=stride).relu()
    x = functional.max_pool2d(x, 3, stride=2, padding=1)
    for stage, (stride, dilation) in enumerate(((1, 1), (2, 1), (1, 2), (1, 4))):
        for number in range(2):
            x = block(tensors, f"backbone.bb_{stage}_{number}", x, stride if number == 0 else 1, dilation)
    levels = []
    for level, size in enumerate((1, 2, 3, 6)):
        pooled = functional.adaptive_avg_pool2d(x, size)
        pooled = conv_norm(tensors, f"head.psp_module.stages.{level}.1", pooled).relu()
        levels.append(functional.interpolate(pooled, size=x.shape[2:], mode="bilinear", align_corners=False))
    x = torch.cat([x, *levels[::-1]], dim=1)
    x = conv_norm(tensors, "head.psp_module.conv_bn_relu2", x).relu()
    return functional.conv2d(x, tensors["head.conv.weight"], tensors["head.conv.bias"])


def block(tensors: Mapping[str, Tensor], name: str, x: Tensor, stride: int, dilation: int) -> Tensor:
    """A bottleneck: pooled where its shortcut is strided, and dilated throughout its stage."""
    y = conv_norm(tensors, f"{name}.conv0", x).relu()
    y = conv_norm(tensors, f"{name}.conv1", y, stride=stride, dilation=dilation).relu()
    y = conv_norm(tensors, f"{name}.conv2", y)
    if f"{name}.short._conv.weight" in tensors:
        x = functional.avg_pool2d(x, 2, ceil_mode=True) if stride == 2 else x
        x = conv_norm(tensors, f"{name}.short", x)
    return (x + y).relu()


def conv_norm(tensors: Mapping[str, Tensor], name: str, x: Tensor, *, stride: int = 1, dilation: int = 1) -> Tensor:
    """A convolution that keeps the size at stride 1, and its batch norm in eval mode."""
    weight, bias = tensors[f"{name}._conv.weight"], tensors.get(f"{name}._conv.bias")
    x = functional.conv2d(x, weight, bias, stride, padding=dilation * (weight.shape[-1] // 2), dilation=dilation)
    mean, variance, scale, shift = (
        tensors[f"{name}._batch_norm.{part}"].view(-1, 1, 1) for part in ("_mean", "_variance", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * scale + shift
