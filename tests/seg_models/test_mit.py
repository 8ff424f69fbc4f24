"""MiT against segmentation_models.pytorch with the same weights, against loops, and as a backbone; Swin as one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from segmentation_models_pytorch.encoders import get_encoder
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from seg_models.backbones.mit import EfficientAttention, MixTransformer
from seg_models.backbones.timm_backbone import BackboneSpec, find_weights

TINY = {"widths": [8, 16, 20, 32], "depths": [1, 2, 1, 1]}
TINY_SWIN = {
    "embed_dim": 8,
    "depths": [1, 1, 1, 2],
    "num_heads": [1, 2, 4, 8],
    "window_size": 4,
    "dynamic_img_size": True,
    "always_partition": True,
}

# name -> parameters, 10^9 multiply-adds of a 512×512 image (specs: CFT sections 6 and 10; B0 has no integer there).
SHEET = {
    "mit_b0": (3.319, 3.20),
    "mit_b1": (13_151_424, 10.43),
    "mit_b2": (24_196_288, 20.24),
    "mit_b3": (44_072_128, 36.86),
    "mit_b4": (60_842_688, 53.47),
    "mit_b5": (81_443_008, 69.41),
}


@pytest.mark.parametrize("name", SHEET)
def test_parameters_and_multiply_adds_are_those_of_the_sheet(name: str) -> None:
    with torch.device("meta"):
        backbone = BackboneSpec(name=name).build().eval()
    params, gmac = SHEET[name]
    found = sum(value.numel() for value in backbone.parameters())
    assert found == params if isinstance(params, int) else round(found / 1e6, 3) == params
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        backbone(torch.empty(1, 3, 512, 512, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gmac, rel=0.005)


@pytest.mark.parametrize("size", [(64, 64), (72, 104)])
def test_features_equal_segmentation_models_pytorch_under_the_released_names(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    backbone = BackboneSpec(name="mit_b0").build().eval()
    for norm in backbone.modules():
        if isinstance(norm, nn.LayerNorm):
            nn.init.normal_(norm.weight, 1, 0.2)
            nn.init.normal_(norm.bias, 0, 0.2)
    reference = get_encoder("mit_b0", weights=None).eval()
    reference.load_state_dict(backbone.network.state_dict())
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    with torch.no_grad():
        found, expected = backbone(images), reference(backbone.normalize(images))[2:]
    assert len(found) == len(expected) == 4
    for level, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(level, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def attention_by_loops(x: Tensor, attention: EfficientAttention) -> Tensor:
    """One image (h, w, C), cell by cell and head by head."""
    height, width, channels = x.shape
    ratio, heads = attention.reduction, attention.num_heads
    size = channels // heads
    assert attention.sr is not None
    assert attention.norm is not None
    small = []
    for top in range(0, height - ratio + 1, ratio):
        for left in range(0, width - ratio + 1, ratio):
            patch = x[top : top + ratio, left : left + ratio].permute(2, 0, 1)
            small.append(
                attention.norm(functional.conv2d(patch[None], attention.sr.weight, attention.sr.bias).flatten())
            )
    keys_values = [attention.kv(cell) for cell in small]
    out = torch.empty_like(x)
    for i in range(height):
        for j in range(width):
            query, mixed = attention.q(x[i, j]), []
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                energy = torch.stack([query[part] @ kv[:channels][part] for kv in keys_values]) / size**0.5
                share = energy.exp() / energy.exp().sum()
                mixed.append(sum(s * kv[channels:][part] for s, kv in zip(share, keys_values, strict=True)))
            out[i, j] = attention.proj(torch.cat(mixed))
    return out


def test_attention_equals_loops_over_cells_and_heads() -> None:
    torch.manual_seed(0)
    attention = EfficientAttention(12, num_heads=3, reduction=2)
    x = torch.randn(2, 5, 6, 12)
    with torch.no_grad():
        expected = torch.stack([attention_by_loops(image, attention) for image in x])
        torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-6)


def test_maps_smaller_than_the_reduction_are_padded_to_one_key() -> None:
    torch.manual_seed(0)
    attention = EfficientAttention(4, num_heads=1, reduction=8).eval()
    x = torch.randn(1, 3, 9, 4)
    padded = torch.zeros(1, 8, 9, 4)
    padded[:, :3] = x
    with torch.no_grad():
        assert attention(x).shape == x.shape
        torch.testing.assert_close(attention(x), attention(padded)[:, :3])


@pytest.mark.parametrize("size", [(33, 65), (19, 16), (64, 32)])
def test_any_size_gives_levels_rounded_up(size: tuple[int, int]) -> None:
    for spec in (
        BackboneSpec(name="mit_b0", model_kwargs=TINY),
        BackboneSpec(name="swin_tiny_patch4_window7_224", model_kwargs=TINY_SWIN),
    ):
        backbone = spec.build().eval()
        assert backbone.strides == (4, 8, 16, 32)
        with torch.no_grad():
            levels = backbone(torch.zeros(1, 3, *size, dtype=torch.uint8))
        expected = [
            (1, channels, -(-size[0] // stride), -(-size[1] // stride))
            for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
        ]
        assert [tuple(level.shape) for level in levels] == expected


def test_swin_gives_its_channels_first() -> None:
    torch.manual_seed(0)
    backbone = BackboneSpec(name="swin_tiny_patch4_window7_224", model_kwargs=TINY_SWIN).build().eval()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        inside = backbone.network(backbone.normalize(images))
        for level, cells in zip(backbone(images), inside, strict=True):
            assert torch.equal(level[:, 1], cells[..., 1])


def test_swins_names_have_the_channels_of_the_sheet() -> None:
    names = {
        "swin_tiny_patch4_window7_224": (96, 192, 384, 768),
        "swin_small_patch4_window7_224": (96, 192, 384, 768),
        "swin_base_patch4_window12_384": (128, 256, 512, 1024),
        "swin_large_patch4_window12_384": (192, 384, 768, 1536),
    }
    with torch.device("meta"):
        assert {name: BackboneSpec(name=name).build().channels for name in names} == names


def test_the_last_block_is_skipped_most_often() -> None:
    network = MixTransformer(widths=(8, 16), depths=(2, 3), heads=(1, 2), reductions=(2, 1), drop_path_rate=0.2)
    rates = [module.drop_prob for module in network.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.05, 0.1, 0.15, 0.2])
    x = torch.randn(1, 3, 16, 16)
    assert not all(torch.equal(network(x)[-1], network(x)[-1]) for _ in range(20))
    network.eval()
    assert torch.equal(network(x)[-1], network(x)[-1])


def test_a_released_classifier_loads_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = MixTransformer(**TINY).state_dict() | {"head.weight": torch.zeros(7, 32), "head.bias": torch.zeros(7)}  # type: ignore[arg-type]
    save_file(tensors, tmp_path / "mit.safetensors")
    backbone = BackboneSpec(name="mit_b0", model_kwargs=TINY, weights=str(tmp_path / "mit.safetensors")).build()
    state = backbone.network.state_dict()
    assert all(torch.equal(state[name], tensors[name]) for name in state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "mit_b7"}, r"unknown timm model 'mit_b7' .did you mean 'mit_b"),
        ({"name": "mit_b0", "output_stride": 16}, "output_stride 16: its stride is 32"),
        ({"name": "mit_b0", "model_kwargs": {"no_such": 1}}, "no_such"),
        ({"name": "mit_b0", "model_kwargs": {"widths": [8, 15, 20, 32]}}, "width 15 must be a multiple of num_heads 2"),
        ({"name": "mit_b0", "pretrained": True}, "no published weights for 'mit_b0': give the path of a file"),
    ],
)
def test_what_a_mit_cannot_be_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BackboneSpec.model_validate(settings).build()


def test_weights_that_timm_does_not_publish_are_refused_before_a_run() -> None:
    with pytest.raises(ValueError, match="no published weights for 'mit_b0': give the path of a file"):
        find_weights(BackboneSpec(name="mit_b0", pretrained=True))
