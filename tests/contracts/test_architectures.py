"""What every architecture promises; a new one adds a line to SMALL and its counts to COUNTS and GMACS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seg_models import describe_model, load_model, save_model
from seg_models.architectures.danet import DANetSpec
from seg_models.architectures.pspnet import PSPNetSpec
from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.export import FullSizeScores
from seg_models.metrics import ConfusionMatrix
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.predictor import Predictor
from seg_models.spec import ARCHITECTURES, ModelSpec, preset, resolve_model_spec

K, VOID = 4, 255

SMALL: dict[str, ModelSpec] = {
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
    "pspnet_resnet10t_narrow": preset("pspnet_resnet10t_narrow"),
    "pspnet_mobilenetv2_035": PSPNetSpec(
        backbone=BackboneSpec(name="mobilenetv2_035", output_stride=16),
        bins=(1, 3),
        head_channels=32,
        aux_channels=None,
    ),
    "pspnet_convnext_paddleseg": PSPNetSpec(
        backbone=BackboneSpec(
            name="convnext_atto", output_stride=8, model_kwargs={"depths": [1, 1, 1, 1], "dims": [16, 16, 32, 32]}
        ),
        pool_channels=8,
        head_channels=32,
        aux_channels=16,
        conv_bias=True,
    ),
}
every_architecture = pytest.mark.parametrize("spec", SMALL.values(), ids=SMALL.keys())

# name, classes -> parameters used in prediction and in auxiliary heads (specs: PSSL section 9, DANet section 10).
COUNTS = [
    ("danet_resnet50", 19, 47_481_883, 2_364_691),
    ("danet_resnet50", 21, 47_484_961, 2_365_205),
    ("danet_resnet50", 59, 47_543_443, 2_374_971),
    ("danet_resnet50", 150, 47_683_492, 2_398_358),
    ("danet_resnet101", 19, 66_474_011, 2_364_691),
    ("danet_resnet101", 150, 66_675_620, 2_398_358),
    ("danet_resnet50_official", 19, 47_462_651, 0),
    ("danet_resnet50_official", 171, 47_696_579, 0),
    ("danet_resnet101_official", 19, 66_454_779, 0),
    ("pspnet_resnet50", 1001, 47_114_569, 2_617_065),
    ("pspnet_resnet50", 19, 46_610_803, 2_364_691),
    ("pspnet_resnet50", 21, 46_611_829, 2_365_205),
    ("pspnet_resnet50", 150, 46_678_006, 2_398_358),
    ("pspnet_resnet50_paddleseg", 1001, 66_505_545, 2_617_321),
    ("pspnet_resnet50_paddleseg", 19, 65_498_995, 2_364_947),
    ("pspnet_resnet50_paddleseg", 150, 65_633_270, 2_398_614),
]

# name, classes, input -> 10^9 multiply-adds of the main path (specs: PSSL section 9, DANet section 5.2).
GMACS = [
    ("danet_resnet50_official", 19, (512, 512), 209.50),
    ("danet_resnet50_official", 19, (512, 1024), 438.33),
    ("danet_resnet50_official", 19, (768, 768), 498.55),
    ("danet_resnet50_official", 19, (769, 769), 509.92),
    ("danet_resnet50_official", 19, (1024, 1024), 953.96),
    ("danet_resnet50", 19, (512, 512), 210.75),
    ("danet_resnet50", 19, (512, 1024), 440.83),
    ("danet_resnet50", 19, (768, 768), 501.37),
    ("danet_resnet50", 19, (769, 769), 512.75),
    ("danet_resnet50", 19, (1024, 1024), 958.97),
    ("danet_resnet101_official", 19, (512, 512), 287.08),
    ("danet_resnet101_official", 19, (512, 1024), 593.48),
    ("danet_resnet101_official", 19, (768, 768), 673.10),
    ("danet_resnet101_official", 19, (769, 769), 688.13),
    ("danet_resnet101_official", 19, (1024, 1024), 1264.27),
    ("danet_resnet101", 19, (512, 512), 288.33),
    ("danet_resnet101", 19, (512, 1024), 595.99),
    ("danet_resnet101", 19, (768, 768), 675.92),
    ("danet_resnet101", 19, (769, 769), 690.96),
    ("danet_resnet101", 19, (1024, 1024), 1269.28),
    ("pspnet_resnet50", 1001, (256, 256), 45.1),
    ("pspnet_resnet50", 19, (512, 1024), 356.6),
    ("pspnet_resnet50", 21, (512, 512), 178.3),
    ("pspnet_resnet50_paddleseg", 1001, (256, 256), 65.0),
    ("pspnet_resnet50_paddleseg", 19, (512, 1024), 511.3),
]


def build(spec: ModelSpec, *, num_classes: int = K, seed: int = 0) -> SegModel:
    torch.manual_seed(seed)
    return spec.build(num_classes)


def make_images(n: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def make_labels(n: int, height: int, width: int) -> Tensor:
    return torch.randint(0, K, (n, height, width), generator=torch.Generator().manual_seed(1))


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
    model = build(spec).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # residual branches begin switched off
    for name, value in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.ones_(value)  # so do attentions
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
def test_class_weights_take_part_in_every_loss(spec: ModelSpec) -> None:
    model, labels = build(spec).train(), make_labels(2, 64, 64)
    output = model(make_images(2, 64, 64))
    plain = model.loss(output, SemanticTarget(labels, VOID))
    weighted = model.loss(output, SemanticTarget(labels, VOID, torch.tensor([0.1, 1.0, 1.0, 1.0])))
    scored = [name for name in plain if name.endswith("ce")]  # others compare something else than class scores
    assert scored
    assert all(plain[name].item() != weighted[name].item() for name in scored)


@every_architecture
def test_a_spec_survives_json(spec: ModelSpec) -> None:
    assert resolve_model_spec(spec.model_dump(mode="json")) == spec
    assert type(spec).model_validate_json(spec.model_dump_json()) == spec


@every_architecture
def test_a_saved_model_gives_equal_scores(spec: ModelSpec, tmp_path: Path) -> None:
    model, images = build(spec).eval(), make_images(1, 40, 56)
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
    network, images = FullSizeScores(build(spec).eval()), make_images(1, 40, 56)
    with torch.no_grad():
        exported = torch.export.export(network, (images,), strict=False).module()(images)
        torch.testing.assert_close(exported, network(images))
    assert exported.shape == (1, K, 40, 56)


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
