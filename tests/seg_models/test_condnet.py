"""CondNet against loops over classes and cells, its losses by their formulas, its options, counts and export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from seg_models import describe_model
from seg_models.architectures.condnet import (
    ConditionalClassifier,
    CondNet,
    CondNetSpec,
    class_averages,
    guidance_dice,
    nearest_labels,
)
from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.export import export_model
from seg_models.outputs import SemanticTarget
from seg_models.parts.mask_losses import MaskLossSpec, mask_losses
from seg_models.recipes import resolve_recipe
from seg_models.recipes.condnet import RECIPES
from tests.recipe_steps import losses_of_steps

K, VOID = 4, 255
TINY = BackboneSpec(name="resnet10t", output_stride=8, model_kwargs={"channels": [8, 8, 16, 16], "stem_width": 8})
NARROW: dict[str, Any] = {"channels": 12, "fine_channels": 4, "aux_channels": 8, "dilations": [2, 3], "dropout": 0.0}


def tiny(**changes: Any) -> CondNet:
    torch.manual_seed(0)
    settings = {"channels": 12, "fine_channels": 4, "aux_channels": 8, **changes}
    model = CondNetSpec(backbone=TINY, dilations=(2, 3), **settings).build(K)
    assert isinstance(model, CondNet)
    return model


def make_images(n: int = 2) -> Tensor:
    return torch.randint(0, 256, (n, 3, 40, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def make_labels() -> Tensor:
    labels = torch.randint(0, K - 1, (2, 40, 32), generator=torch.Generator().manual_seed(0))
    labels[0, :9] = VOID
    return labels


def lively_classifier(*, cut_flat: bool = False) -> ConditionalClassifier:
    torch.manual_seed(0)
    classifier = ConditionalClassifier(6, K, cut_flat=cut_flat).eval()
    for value in classifier.parameters():
        nn.init.normal_(value)
    return classifier


def scores_by_loops(classifier: ConditionalClassifier, x: Tensor) -> tuple[Tensor, Tensor]:
    """One image (C, h, w): guidance cell by cell, a kernel class by class, the scores cell by cell."""
    assert classifier.guidance.bias is not None
    assert classifier.filters.bias is not None
    channels, height, width = x.shape
    cells = [(i, j) for i in range(height) for j in range(width)]
    guidance, averages = torch.empty(K, height, width), [torch.zeros(channels) for _ in range(K)]
    for i, j in cells:
        guidance[:, i, j] = classifier.guidance.weight[:, :, 0, 0] @ x[:, i, j] + classifier.guidance.bias
        total = guidance[:, i, j].exp().sum()
        for k in range(K):
            averages[k] = averages[k] + guidance[k, i, j].exp() / total * x[:, i, j] / len(cells)
    numbers = []
    for k in range(K):
        own = slice(k * (channels + 1), (k + 1) * (channels + 1))
        numbers.append(classifier.filters.weight[own, :, 0, 0] @ averages[k] + classifier.filters.bias[own])
    scores = torch.empty(K, height, width)
    for k in range(K):
        kernel, bias = numbers[k][:channels], numbers[k][channels]
        if classifier.cut_flat:
            row = torch.cat(numbers)
            kernel, bias = row[k * channels : (k + 1) * channels], row[K * channels + k]
        for i, j in cells:
            scores[k, i, j] = kernel @ x[:, i, j] + bias
    return scores, guidance


@pytest.mark.parametrize("cut_flat", [False, True])
def test_scores_equal_a_kernel_per_class_at_every_cell(cut_flat: bool) -> None:
    classifier, x = lively_classifier(cut_flat=cut_flat), torch.randn(3, 6, 4, 5)
    with torch.no_grad():
        scores, guidance = classifier(x)
        for n in range(3):
            expected, expected_guidance = scores_by_loops(classifier, x[n])
            torch.testing.assert_close(scores[n], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(guidance[n], expected_guidance, rtol=1e-4, atol=1e-5)


def test_the_kernel_of_a_class_depends_on_the_average_of_that_class_alone() -> None:
    classifier, averages = lively_classifier(), torch.randn(1, K, 6, requires_grad=True)
    kernels, biases = classifier.kernels(averages)
    for k in range(K):
        (gradient,) = torch.autograd.grad(kernels[0, k].sum() + biases[0, k], averages, retain_graph=True)
        assert gradient[0, k].all()
        assert torch.count_nonzero(gradient[0]) == 6


def test_cut_flat_a_kernel_begins_with_numbers_of_the_class_before_and_biases_are_the_last_classs() -> None:
    classifier, averages = lively_classifier(cut_flat=True), torch.randn(1, K, 6, requires_grad=True)
    kernels, biases = classifier.kernels(averages)
    for k in range(K):
        for c in range(6):
            (gradient,) = torch.autograd.grad(kernels[0, k, c], averages, retain_graph=True)
            assert gradient[0].any(dim=1).nonzero().flatten().tolist() == [k - 1 if c < k else k]
        (gradient,) = torch.autograd.grad(biases[0, k], averages, retain_graph=True)
        assert gradient[0].any(dim=1).nonzero().flatten().tolist() == [K - 1]


def test_an_equal_guidance_gives_every_class_its_share_of_the_mean() -> None:
    """The softmax is over the classes and not over the cells, and the mean is over all cells."""
    x = torch.randn(2, 6, 4, 5)
    expected = x.mean((2, 3))[:, None] / K
    torch.testing.assert_close(class_averages(x, torch.full((2, K, 4, 5), 3.0)), expected.expand(-1, K, -1))


def test_a_sure_guidance_gives_the_sum_over_the_cells_of_a_class_divided_by_all_cells() -> None:
    x, guidance = torch.randn(1, 6, 4, 5), torch.zeros(1, K, 4, 5)
    guidance[0, 0] = 1e4
    guidance[0, :, 2, 3] = torch.tensor([0.0, 1e4, 0.0, 0.0])
    averages = class_averages(x, guidance)[0]
    torch.testing.assert_close(averages[1], x[0, :, 2, 3] / 20)
    torch.testing.assert_close(averages[0], (x.sum((2, 3))[0] - x[0, :, 2, 3]) / 20)
    assert torch.count_nonzero(averages[2:]) == 0


def test_the_same_cell_has_other_scores_in_another_image_and_images_of_a_batch_do_not_mix() -> None:
    classifier, x = lively_classifier(), torch.randn(2, 6, 4, 5)
    x[1, :, 0, 0] = x[0, :, 0, 0]
    with torch.no_grad():
        both, guidance = classifier(x)
        torch.testing.assert_close(guidance[0, :, 0, 0], guidance[1, :, 0, 0])
        assert not torch.allclose(both[0, :, 0, 0], both[1, :, 0, 0], atol=1e-2)
        torch.testing.assert_close(both[1:], classifier(x[1:])[0])


def test_averages_leave_mixed_precision() -> None:
    classifier, x = lively_classifier(), torch.randn(1, 6, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        guidance = classifier.guidance(x)
        averages = class_averages(x, guidance)
        assert torch.isfinite(classifier(1e3 * x)[0]).all()
    shares = guidance.float().flatten(2).softmax(1)
    torch.testing.assert_close(averages, torch.einsum("nkp,ncp->nkc", shares, x.flatten(2)) / 256)


def dice_by_formula(scores: Tensor, labels: Tensor) -> Tensor:
    """Image by image, class by class, cell by cell, in float64; the label of a cell is that of its first pixel."""
    _, k, h, w = scores.shape
    losses = []
    for image, label in zip(scores.double(), labels, strict=True):
        for g in range(k):
            overlap, sizes = image.new_zeros(()), image.new_zeros(())
            for i in range(h):
                for j in range(w):
                    own = int(label[i * label.shape[0] // h, j * label.shape[1] // w])
                    if own == VOID:
                        continue
                    p = image[g, i, j].exp() / image[:, i, j].exp().sum()
                    overlap = overlap + p * (own == g)
                    sizes = sizes + p**2 + (own == g)
            losses.append(1 - (2 * overlap + 1e-5) / (sizes + 1e-5))
    return torch.stack(losses).mean()


def test_the_dice_loss_of_the_guidance_and_its_gradient_equal_the_formula() -> None:
    scores = torch.randn(2, K, 5, 4, generator=torch.Generator().manual_seed(3), requires_grad=True)
    labels = make_labels()
    found, expected = guidance_dice(scores, SemanticTarget(labels, VOID)), dice_by_formula(scores, labels)
    torch.testing.assert_close(found, expected.float())
    torch.testing.assert_close(
        torch.autograd.grad(found, scores)[0], torch.autograd.grad(expected, scores)[0], rtol=1e-4, atol=1e-7
    )


def test_perfect_guidance_has_no_loss_but_for_classes_that_no_image_holds() -> None:
    labels = torch.arange(K).repeat_interleave(8)[None, None].expand(1, 32, -1)
    scores = 1e3 * functional.one_hot(nearest_labels(labels, (4, 4)), K).permute(0, 3, 1, 2).float()
    assert guidance_dice(scores, SemanticTarget(labels, VOID)).item() == pytest.approx(0, abs=1e-6)
    assert guidance_dice(scores, SemanticTarget(torch.full_like(labels, VOID), VOID)).item() == 0
    absent = guidance_dice(torch.zeros(1, K, 4, 4), SemanticTarget(torch.zeros_like(labels), VOID))
    assert absent.item() == pytest.approx((3 + 1 - 8 / (1 + 16)) / 4, abs=1e-5)


@pytest.mark.parametrize("size", [(5, 4), (7, 3), (40, 32), (1, 1)])
def test_labels_of_cells_are_torchs_nearest(size: tuple[int, int]) -> None:
    labels = make_labels()
    expected = functional.interpolate(labels[:, None].double(), size=size, mode="nearest")[:, 0].long()
    assert torch.equal(nearest_labels(labels, size), expected)


def test_the_network_is_a_plain_composition() -> None:
    model: Any = tiny().eval()
    images = make_images()
    with torch.no_grad():
        features = model.backbone(images)
        aspp, fuse = model.context
        fine = model.fine(features[1])
        coarse = functional.interpolate(fuse(aspp(features[-1])), size=(10, 8), mode="bilinear")
        expected, _ = model.classifier(model.refine(torch.cat([coarse, fine], dim=1)))
        torch.testing.assert_close(model(images).logits, expected, rtol=1e-4, atol=1e-6)


def test_the_guidance_is_weighted_supervised_and_absent_in_prediction() -> None:
    model = tiny(guidance_weight=0.7).train()
    output = model(make_images())
    losses = model.loss(output, SemanticTarget(make_labels(), VOID))
    assert list(losses) == ["ce", "aux_ce", "dice_guidance_scores"]
    guidance = output.extras["guidance"]
    assert guidance.shape == output.logits.shape == (2, K, 10, 8)
    expected = 0.7 * guidance_dice(guidance, SemanticTarget(make_labels(), VOID))
    torch.testing.assert_close(losses["dice_guidance_scores"], expected)
    through_kernels: tuple[Any, ...] = torch.autograd.grad(output.logits.sum(), guidance, allow_unused=True)
    assert through_kernels == (None,)
    assert not model.eval()(make_images()).extras


def test_the_mask_loss_stands_beside_the_dice_loss_or_in_its_place() -> None:
    target = SemanticTarget(make_labels(), VOID)
    both = tiny(mask_loss=MaskLossSpec(focal_weight=3.0, dice_weight=0.5), aux_channels=None).train()
    output = both(make_images())
    losses = both.loss(output, target)
    found = mask_losses((output.extras["guidance"],), target.labels, void=VOID)
    assert list(losses) == ["ce", "dice_guidance_scores", "focal_masks", "dice_masks"]
    torch.testing.assert_close(losses["focal_masks"], 3 * found.focal)
    torch.testing.assert_close(losses["dice_masks"], 0.5 * found.dice)
    alone = tiny(mask_loss=MaskLossSpec(), guidance_weight=0.0).train()
    assert list(alone.loss(alone(make_images()), target)) == ["ce", "aux_ce", "focal_masks", "dice_masks"]
    none = tiny(guidance_weight=0.0).train()
    assert list(none.loss(none(make_images()), target)) == ["ce", "aux_ce"]


def test_a_backbone_without_a_level_of_stride_4_is_refused() -> None:
    with pytest.raises(ValueError, match="the decoder needs 4"):
        CondNetSpec(backbone=BackboneSpec(name="resnet10t", model_kwargs={"out_indices": [3, 4]})).build(K)


def conv(inputs: int, outputs: int, side: int = 1) -> int:
    """Parameters of a convolution and of the norm behind it."""
    return inputs * outputs * side**2 + 2 * outputs


def separable(inputs: int, outputs: int) -> int:
    return 9 * inputs + 2 * inputs + conv(inputs, outputs)


@pytest.mark.parametrize(("name", "backbone"), [("condnet_resnet50", 23_527_264), ("condnet_resnet101", 42_519_392)])
@pytest.mark.parametrize("num_classes", [59, 150])
def test_parameters_are_those_of_the_released_layers(name: str, backbone: int, num_classes: int) -> None:
    aspp = 2 * conv(2048, 512) + 3 * separable(2048, 512) + conv(5 * 512, 512, 3)
    decoder = conv(256, 48) + separable(512 + 48, 512) + separable(512, 512)
    classifier = num_classes * (512 + 1) + num_classes * 513 * (512 + 1)
    info = describe_model(name, num_classes=num_classes, size=(64, 64))
    assert info.params_main == backbone + aspp + decoder + classifier
    assert info.params_aux == conv(1024, 256, 3) + num_classes * 257


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_an_onnx_file_gives_the_scores_of_the_model(tmp_path: Path) -> None:
    (result,) = export_model(tiny(), directory=tmp_path / "out", formats=("onnx",), size=(40, 32))
    assert result.max_rel_diff <= 1e-4


def test_a_recipe_with_masks_differs_from_the_one_without_in_the_mask_loss_alone() -> None:
    plain, masked = (resolve_recipe(f"condnet_resnet101_ade20k{ending}") for ending in ("", "_masks"))
    assert masked.model == plain.model.model_copy(update={"mask_loss": MaskLossSpec(focal_weight=5.0, dice_weight=2.0)})
    assert masked.model_copy(update={"model": plain.model}) == plain


@pytest.mark.parametrize("name", [function.__name__ for function in RECIPES])
def test_two_steps_of_a_published_recipe_in_a_reduced_form_lower_its_loss(name: str) -> None:
    recipe = resolve_recipe({"base": name, "model": {"backbone": TINY.model_dump(), **NARROW}})
    target = SemanticTarget(torch.arange(32).expand(2, 40, 32) // 8 % K, VOID)
    losses = losses_of_steps(recipe, make_images(), target, num_classes=K)
    assert losses[-1] < losses[0]
