"""What every architecture promises; a new one adds a line to SMALL and its counts to COUNTS and GMACS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.sheet_figures import COUNTS, GMACS
from seg_models import describe_model, load_model, save_model
from seg_models.architectures.alignseg import AlignSegSpec
from seg_models.architectures.ccnet import CCNetSpec, ConsistencySpec
from seg_models.architectures.cft import SWIN, CFTSpec
from seg_models.architectures.condnet import CondNetSpec
from seg_models.architectures.danet import DANetSpec
from seg_models.architectures.deeplabv3 import DeepLabV3Spec
from seg_models.architectures.deeplabv3plus import DeepLabV3PlusSpec
from seg_models.architectures.fapn import FaPNSpec
from seg_models.architectures.fastfcn import FastFCNSpec
from seg_models.architectures.fastfcn_heads import ASPPHeadSpec, EncodingHeadSpec, FCNHeadSpec, PSPHeadSpec
from seg_models.architectures.fastfcn_upsampling import BilinearSpec, FPNSpec, JPUSpec, JPUXSpec
from seg_models.architectures.fcn import FCNSpec
from seg_models.architectures.gated_scnn import GatedSCNNSpec
from seg_models.architectures.hmsa import HMSASpec
from seg_models.architectures.hrnet_ocr import HRNetOCRSpec
from seg_models.architectures.ocrnet import OCRNetSpec
from seg_models.architectures.pspnet import PSPNetSpec
from seg_models.architectures.scale_baselines import AverageScalesSpec, ExplicitScalesSpec
from seg_models.architectures.segformer import SegFormerSpec
from seg_models.architectures.semfpn import SemFPNSpec
from seg_models.architectures.vtfpn import VTFPNSpec
from seg_models.backbones.hrnet import HRNetSpec
from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.export import FullSizeScores
from seg_models.metrics import ConfusionMatrix
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.parts.mask_losses import MaskLossSpec
from seg_models.parts.mining import HardPixels
from seg_models.peak_memory import LiveBytes, foresee
from seg_models.predictor import Predictor
from seg_models.spec import ARCHITECTURES, ModelSpec, preset, resolve_model_spec

K, VOID = 4, 255
NARROW: dict[str, Any] = {"name": "resnet10t", "model_kwargs": {"channels": (16, 32, 64, 128), "stem_width": 16}}
"""A small ResNet; add its output_stride."""

TINY_HRNET = HRNetSpec(name="hrnet_w18", model_kwargs={"width": 8, "num_blocks": 1, "num_modules": (1, 1, 1)})

TINY_MIT = BackboneSpec(
    name="mit_b0", model_kwargs={"widths": [8, 16, 20, 32], "depths": [1, 1, 1, 1], "drop_path_rate": 0.0}
)

SMALL: dict[str, ModelSpec] = {
    "cft_mit_tiny": CFTSpec(backbone=TINY_MIT, width=32, fusion_channels=32),
    "cft_swin_tiny_naive": CFTSpec(
        backbone=BackboneSpec(
            name="swin_tiny_patch4_window7_224",
            model_kwargs={
                **SWIN,
                "embed_dim": 8,
                "depths": [1, 1, 2, 1],
                "num_heads": [1, 2, 2, 4],
                "drop_path_rate": 0.0,
            },
        ),
        width=32,
        fusion_channels=32,
        attend_to="cells",
    ),
    "cft_resnet10t_pooled_aspp": CFTSpec(
        backbone=BackboneSpec(name="resnet10t", model_kwargs={"channels": (16, 32, 64, 128), "stem_width": 16}),
        width=32,
        fusion_channels=16,
        attend_to="pooled",
        pool_cells=3,
        context="aspp",
        fusion="sum",
    ),
    "ccnet_resnet10t_narrow": preset("ccnet_resnet10t_narrow"),
    "ccnet_mobilenetv2_035_consistent": CCNetSpec(
        backbone=BackboneSpec(name="mobilenetv2_035", output_stride=16),
        channels=16,
        recurrence=3,
        shared=False,
        own_once=False,
        activation="leaky_relu",
        aux_channels=16,
        aux_bias=True,
        consistency=ConsistencySpec(channels=4),
    ),
    "ccnet_mobilenetv2_035_non_local": CCNetSpec(
        backbone=BackboneSpec(name="mobilenetv2_035", output_stride=16),
        channels=16,
        context="non_local",
        recurrence=1,
        aux_channels=None,
    ),
    "condnet": CondNetSpec(
        backbone=BackboneSpec(**NARROW, output_stride=8),
        dilations=(2, 4),
        channels=32,
        fine_channels=8,
        aux_channels=16,
    ),
    "condnet_masks": CondNetSpec(
        backbone=BackboneSpec(**NARROW, output_stride=16),
        dilations=(2, 4),
        channels=32,
        fine_channels=8,
        aux_channels=None,
        mask_loss=MaskLossSpec(),
        cut_flat=True,
    ),
    "danet_resnet10t_narrow": DANetSpec(
        backbone=BackboneSpec(
            name="resnet10t", output_stride=8, model_kwargs={"channels": (16, 32, 64, 128), "stem_width": 16}
        ),
        channels=32,
        aux_channels=16,
    ),
    "danet_mobilenetv2_035_like": DANetSpec(
        backbone=BackboneSpec(name="mobilenetv2_035", output_stride=16),
        channels=16,
        aux_channels=None,
        like_channels=True,
    ),
    "ocrnet": OCRNetSpec(
        backbone=BackboneSpec(**NARROW, output_stride=8), channels=32, key_channels=16, region_channels=16
    ),
    "ocrnet_masks": OCRNetSpec(
        backbone=BackboneSpec(**NARROW, output_stride=16),
        channels=32,
        key_channels=16,
        region_channels=16,
        conv_bias=True,
        mask_loss=MaskLossSpec(),
    ),
    "pspnet_resnet10t_narrow": preset("pspnet_resnet10t_narrow"),
    "pspnet_mobilenetv2_035": PSPNetSpec(
        backbone=BackboneSpec(name="mobilenetv2_035", output_stride=16),
        bins=(1, 3),
        head_channels=32,
        aux_channels=None,
    ),
    "segformer_mit_tiny": SegFormerSpec(backbone=TINY_MIT, width=32),
    "alignseg": AlignSegSpec(backbone=BackboneSpec(**NARROW), width=16, aux_channels=8),
    "alignseg_authors": AlignSegSpec(
        backbone=BackboneSpec(**NARROW), width=16, aux_channels=None, activation="leaky_relu", align_corners=True
    ),
    "fapn_mit_tiny": FaPNSpec(backbone=TINY_MIT, width=16, num_groups=2, head_channels=16),
    "vtfpn_mit_tiny": VTFPNSpec(backbone=TINY_MIT, width=32, num_tokens=3, token_channels=24, head_channels=16),
    "semfpn_mit_tiny": SemFPNSpec(backbone=TINY_MIT, width=32, head_channels=16),
    "pspnet_convnext_paddleseg": PSPNetSpec(
        backbone=BackboneSpec(
            name="convnext_atto", output_stride=8, model_kwargs={"depths": [1, 1, 1, 1], "dims": [16, 16, 32, 32]}
        ),
        pool_channels=8,
        head_channels=32,
        aux_channels=16,
        conv_bias=True,
    ),
    "hrnet_tiny": HRNetOCRSpec(backbone=TINY_HRNET, channels=None),
    "hrnet_ocr_tiny": HRNetOCRSpec(backbone=TINY_HRNET, channels=32, key_channels=16),
    "hmsa_hrnet_ocr_tiny": HMSASpec(
        inner=HRNetOCRSpec(backbone=TINY_HRNET, channels=32, key_channels=16), attention_channels=16
    ),
    "hmsa_pspnet_pixels": HMSASpec(
        inner=preset("pspnet_resnet10t_narrow"),
        attention_channels=16,
        scales=(0.5, 1.0, 1.5),
        mix_at="pixels",
        criterion="ce",
        supervised_weight=0.0,
    ),
    "explicit_pspnet": ExplicitScalesSpec(
        inner=preset("pspnet_resnet10t_narrow"), attention_channels=16, scales=(0.5, 1.0)
    ),
    "average_pspnet": AverageScalesSpec(inner=preset("pspnet_resnet10t_narrow"), criterion="ce"),
    "fcn": FCNSpec(backbone=BackboneSpec(**NARROW, output_stride=8), head_channels=32, aux_channels=16),
    "deeplabv3": DeepLabV3Spec(backbone=BackboneSpec(**NARROW, output_stride=8), channels=32, aux_channels=16),
    "deeplabv3plus": DeepLabV3PlusSpec(backbone=BackboneSpec(**NARROW, output_stride=16), channels=32, fine_channels=8),
    "deeplabv3plus_smp": DeepLabV3PlusSpec(
        backbone=BackboneSpec(**NARROW, output_stride=16), channels=32, fine_channels=8, smp_compat=True
    ),
    "fastfcn_enc": FastFCNSpec(
        backbone=BackboneSpec(**NARROW),
        upsampling=JPUSpec(width=16),
        head=EncodingHeadSpec(channels=32, codes=8, lateral=True),
        aux_channels=16,
    ),
    "fastfcn_psp_jpux": FastFCNSpec(
        backbone=BackboneSpec(**NARROW),
        upsampling=JPUXSpec(width=16, groups=4),
        head=PSPHeadSpec(bins=(1, 3), channels=32),
        aux_channels=None,
    ),
    "fastfcn_aspp_dilated": FastFCNSpec(
        backbone=BackboneSpec(**NARROW, output_stride=8),
        upsampling=None,
        head=ASPPHeadSpec(channels=16),
        aux_channels=16,
    ),
    "fastfcn_fcn_fpn": FastFCNSpec(
        backbone=BackboneSpec(**NARROW), upsampling=FPNSpec(width=32), head=FCNHeadSpec(channels=32), aux_channels=None
    ),
    "fastfcn_fcn_bilinear": FastFCNSpec(
        backbone=BackboneSpec(**NARROW), upsampling=BilinearSpec(), head=FCNHeadSpec(channels=32), aux_channels=16
    ),
    "gated_scnn_wideresnet38_narrow": GatedSCNNSpec(
        backbone=BackboneSpec(
            name="wideresnet38",
            output_stride=8,
            model_kwargs={"width": 1 / 16, "depths": [1, 1, 1, 1, 1, 1], "dropout": [0, 0]},
        ),
        shape_channels=(4, 4, 4),
        context_channels=16,
        fine_channels=8,
        head_channels=32,
    ),
    "gated_scnn_resnet10t_no_gradient": GatedSCNNSpec(
        backbone=BackboneSpec(
            name="resnet10t", output_stride=8, model_kwargs={"channels": (16, 32, 64, 128), "stem_width": 16}
        ),
        shape_channels=(8, 4, 4),
        edge_input="shape",
        context_channels=16,
        fine_channels=8,
        head_channels=32,
    ),
}
every_architecture = pytest.mark.parametrize("spec", SMALL.values(), ids=SMALL.keys())


def build(spec: ModelSpec, *, num_classes: int = K, seed: int = 0) -> SegModel:
    torch.manual_seed(seed)
    return spec.build(num_classes)


def switched_on(model: SegModel) -> SegModel:
    """The network with all that begins without effect: else nothing that is compared depends on it."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # residual branches begin switched off
    for name, value in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.ones_(value)  # so do attentions
        elif value.dim() > 1 and not value.any():
            nn.init.normal_(value, std=0.01)  # so do offsets and flows
    return model


def make_images(n: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def make_labels(n: int, height: int, width: int) -> Tensor:
    blocks = torch.randint(0, K, (n, height // 8, width // 8), generator=torch.Generator().manual_seed(1))
    return blocks.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)  # some pixels are on no border


def total_loss(model: SegModel, output: SemanticOutput, labels: Tensor) -> Tensor:
    return torch.stack(list(model.loss(output, SemanticTarget(labels, VOID)).values())).sum()


@every_architecture
@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 65), (32, 47), (19, 16)])
def test_any_size_and_a_batch_of_one_give_cells_of_the_output_stride(spec: ModelSpec, height: int, width: int) -> None:
    model = build(spec).eval()
    padded = [-(-side // model.output_stride) for side in (height, width)]
    with torch.no_grad():
        output = model(make_images(1, height, width))
    assert output.logits.shape[:2] == (1, K)
    # Networks whose stem has no padding drop the rest of a cell.
    for cells, side in zip(output.logits.shape[2:], padded, strict=True):
        assert side - 1 <= cells <= side
    assert output.aux == ()
    assert not output.extras
    assert torch.isfinite(output.logits).all()


@every_architecture
def test_bytes_and_floats_of_the_same_image_give_equal_scores(spec: ModelSpec) -> None:
    model, images = build(spec).eval(), make_images(2, 32, 48)
    with torch.no_grad():
        assert torch.equal(model(images).logits, model(images.float()).logits)


@every_architecture
def test_gradients_reach_every_parameter(spec: ModelSpec) -> None:
    model = switched_on(build(spec)).train()
    torch.autograd.backward(total_loss(model, model(make_images(2, 64, 64)), make_labels(2, 64, 64)))
    without = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    allowed = [name for name in without if name.endswith(".conv.bias")]  # a batch norm behind takes its effect away
    assert without == allowed
    assert all(torch.isfinite(value.grad).all() for value in model.parameters() if value.grad is not None)


@every_architecture
def test_void_pixels_have_no_gradient_and_a_void_batch_has_no_loss(spec: ModelSpec) -> None:
    model = build(spec).train()
    output = model(make_images(2, 64, 64))
    labels = make_labels(2, 64, 64)
    labels[1] = VOID
    scores = (output.logits, *output.aux, *output.extras.values())
    for gradient in torch.autograd.grad(total_loss(model, output, labels), scores, retain_graph=True):
        assert torch.count_nonzero(gradient[1]) == 0
        assert torch.count_nonzero(gradient[0]) > 0
    empty = total_loss(model, output, torch.full_like(labels, VOID))
    torch.autograd.backward(empty)
    assert empty.item() == 0
    assert all(value.grad is None or not value.grad.any() for value in model.parameters())


@every_architecture
def test_names_of_auxiliary_losses_begin_with_aux(spec: ModelSpec) -> None:
    model = build(spec).train()
    output = model(make_images(2, 64, 64))
    names = list(model.loss(output, SemanticTarget(make_labels(2, 64, 64), VOID)))
    assert [name.startswith("aux") for name in names].count(True) == len(output.aux)
    assert not names[0].startswith("aux")


@every_architecture
def test_class_weights_and_hard_pixels_take_part_in_the_losses(spec: ModelSpec) -> None:
    model, labels = build(spec).train(), make_labels(2, 64, 64)
    output = model(make_images(2, 64, 64))
    plain = model.loss(output, SemanticTarget(labels, VOID))
    weighted = model.loss(output, SemanticTarget(labels, VOID, torch.tensor([0.1, 1.0, 1.0, 1.0])))
    scored = [name for name in plain if name.endswith("ce")]  # others compare something else than class scores
    assert scored
    assert all(plain[name].item() != weighted[name].item() for name in scored)
    mining = HardPixels(threshold=1e-3, min_kept=500)
    mined = model.loss(output, SemanticTarget(labels, VOID, mining=mining))
    changed = [name for name in plain if plain[name].item() != mined[name].item()]
    assert mining.was_used == ("ce" in changed)
    assert not any(name.startswith("aux") for name in changed)


@every_architecture
def test_a_spec_survives_json(spec: ModelSpec) -> None:
    assert resolve_model_spec(spec.model_dump(mode="json")) == spec
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec


@every_architecture
def test_a_saved_model_gives_equal_scores(spec: ModelSpec, tmp_path: Path) -> None:
    model, images = switched_on(build(spec)).eval(), make_images(1, 40, 56)
    save_model(tmp_path, model=model, spec=spec, label_space={"names": ["a", "b", "c", "d"]})
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path).model(images).logits, model(images).logits)


@every_architecture
def test_parameters_depend_on_the_class_list_only_where_the_model_says_so(spec: ModelSpec) -> None:
    few, many = build(spec, num_classes=3), build(spec, num_classes=7)
    shapes = {name: value.shape for name, value in many.state_dict().items()}
    changed = {name for name, value in few.state_dict().items() if value.shape != shapes[name]}
    assert changed == {name for name in shapes if name.startswith(few.class_dependent)}
    assert (few.num_classes, many.num_classes) == (3, 7)


@every_architecture
def test_an_exported_program_gives_equal_scores(spec: ModelSpec) -> None:
    network, images = FullSizeScores(switched_on(build(spec)).eval()), make_images(1, 40, 56)
    with torch.no_grad():
        exported = torch.export.export(network, (images,), strict=False).module()(images)
        torch.testing.assert_close(exported, network(images))
    assert exported.shape == (1, K, 40, 56)


@pytest.mark.slow
@every_architecture
def test_the_memory_of_a_prediction_is_known_before_it_runs(spec: ModelSpec) -> None:
    model = build(spec).eval()
    images = torch.zeros(2, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    found = foresee(
        model, lambda network, x: network(x).logits, shape=images.shape, dtype=images.dtype, device=images.device
    )
    with torch.no_grad(), LiveBytes() as live:
        live.hold(images)
        scores = model(images).logits
    assert found.scores_shape == tuple(scores.shape)
    assert live.peak_bytes <= found.peak_bytes <= 1.1 * live.peak_bytes


@every_architecture
def test_a_few_pictures_can_be_learned_by_heart(spec: ModelSpec) -> None:
    """Four pictures of two colours each; the prediction at full size must find the two halves."""
    images, labels = two_coloured_pictures()
    model = build(spec).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(40):
        optimizer.zero_grad()
        torch.autograd.backward(total_loss(model, model(images), labels))
        optimizer.step()
    counts, predictor = ConfusionMatrix(K, VOID), Predictor(refresh_norms(model, images))
    for image, label in zip(images, labels, strict=True):
        counts.update(predictor.predict(image.permute(1, 2, 0).numpy()).label, label)
    assert counts.pixel_accuracy() > 0.9


def two_coloured_pictures() -> tuple[Tensor, Tensor]:
    colors = torch.tensor([[220, 40, 40], [40, 220, 40], [40, 40, 220], [200, 200, 200]], dtype=torch.uint8)
    labels = torch.empty(4, 48, 48, dtype=torch.int64)
    for n in range(4):
        labels[n, :, :24] = n
        labels[n, :, 24:] = (n + 1) % 4
    return colors[labels].permute(0, 3, 1, 2).contiguous(), labels


def refresh_norms(model: SegModel, images: Tensor) -> SegModel:
    """Let running statistics catch up with weights that changed fast."""
    with torch.no_grad():
        for _ in range(30):
            model(images)
    return model.eval()


@pytest.mark.parametrize(("name", "num_classes", "main", "aux"), COUNTS)
def test_parameter_counts_are_exact(name: str, num_classes: int, main: int, aux: int) -> None:
    info = describe_model(name, num_classes=num_classes, size=(64, 64))
    assert (info.params_main, info.params_aux) == (main, aux)


@pytest.mark.parametrize(("name", "num_classes", "size", "gmac"), GMACS)
def test_multiply_adds_are_those_of_the_sheet(name: str, num_classes: int, size: tuple[int, int], gmac: float) -> None:
    assert describe_model(name, num_classes=num_classes, size=size).gmac == pytest.approx(gmac, rel=0.005)


def test_the_deep_stem_backbone_has_the_count_of_the_sheet() -> None:
    for name in ("resnet50c", "resnet50d"):
        with torch.device("meta"):
            backbone = BackboneSpec(name=name, output_stride=8).build()
        assert sum(value.numel() for value in backbone.parameters()) == 23_527_264


def test_every_small_spec_names_its_architecture() -> None:
    assert {spec.arch for spec in SMALL.values()} == set(ARCHITECTURES)
    assert all(np.isfinite(describe_model(spec, num_classes=2, size=(64, 64)).gmac) for spec in SMALL.values())
