"""SegFormer against transformers' with the same weights, which go through a file as transformers publishes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from seg_models.architectures.segformer import SegFormerSpec
from seg_models.backbones.timm_backbone import BackboneSpec
from seg_models.outputs import SegModel
from seg_models.weights.files import load_tensors
from seg_models.weights.layouts import LAYOUTS
from seg_models.weights.published import export_tensors, import_tensors
from tests.published_lists import from_lists

LAYOUT = LAYOUTS["segformer_transformers"]
FILE = "model.safetensors"
SMALL = {"widths": [16, 16, 40, 32], "depths": [1, 2, 1, 1]}
CASES = {
    "small": SegFormerSpec(backbone=BackboneSpec(name="mit_b0", model_kwargs=SMALL), width=24),
    "mit_b0": SegFormerSpec(backbone=BackboneSpec(name="mit_b0"), width=256),
    "mit_b2": SegFormerSpec(backbone=BackboneSpec(name="mit_b2"), width=768),
}
SIZES = {
    "small": (SMALL["widths"], SMALL["depths"]),
    "mit_b0": ([32, 64, 160, 256], [2, 2, 2, 2]),
    "mit_b2": ([64, 128, 320, 512], [3, 4, 6, 3]),
}


def reference(case: str) -> nn.Module:
    """transformers' network; no tensor of it is what a layer starts with."""
    widths, depths = SIZES[case]
    torch.manual_seed(0)
    config = SegformerConfig(hidden_sizes=widths, depths=depths, decoder_hidden_size=CASES[case].width, num_labels=5)
    network: nn.Module = SegformerForSemanticSegmentation(config).eval()
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.add_(0.05 * torch.rand_like(value))  # running variances stay positive
    return network


def published(network: nn.Module, folder: Path) -> dict[str, Tensor]:
    """What transformers writes of a network."""
    network.save_pretrained(folder)  # type: ignore[operator]
    return load_tensors(folder / FILE)


def ours(case: str, tensors: dict[str, Tensor]) -> SegModel:
    model = CASES[case].build(5).eval()
    assert import_tensors(model, tensors, LAYOUT).complete
    return model


def assert_equal_scores(found: SegModel, theirs: nn.Module, size: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(found.get_submodule("backbone.normalize")(images)).logits
        scores = found(images).logits
    assert scores.shape == expected.shape
    assert float((scores - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("case", "size"), [("small", (96, 64)), ("small", (77, 93)), ("mit_b0", (64, 64)), ("mit_b2", (64, 64))]
)
def test_scores_equal_those_of_transformers(case: str, size: tuple[int, int], tmp_path: Path) -> None:
    theirs = reference(case)
    assert_equal_scores(ours(case, published(theirs, tmp_path)), theirs, size)


def test_a_network_of_ours_becomes_one_of_transformers(tmp_path: Path) -> None:
    model = ours("small", published(reference("small"), tmp_path))
    for value in model.parameters():
        value.data += 0.01 * torch.randn_like(value)
    save_file(
        {name: value.contiguous() for name, value in export_tensors(model, LAYOUT).items()},
        tmp_path / FILE,
        metadata={"format": "pt"},
    )
    assert_equal_scores(model, SegformerForSemanticSegmentation.from_pretrained(tmp_path).eval(), (64, 64))


def test_the_list_of_published_names_is_what_transformers_writes(tmp_path: Path) -> None:
    written = published(reference("mit_b0"), tmp_path)
    listed = from_lists("segformer_transformers_mit_b0")
    assert set(written) == set(listed)
    ending = {name for name in listed if written[name].shape != listed[name].shape}
    assert ending == {f"decode_head.classifier.{part}" for part in ("weight", "bias")}  # 5 classes here, 150 there
