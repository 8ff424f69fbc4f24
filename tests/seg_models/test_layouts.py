"""Layouts against literal lists of published keys and shapes, which are not made by the maps they test."""

from __future__ import annotations

import re

import pytest
import torch

from seg_models.spec import presets
from seg_models.weights.layouts import LAYOUTS, find_layout, layouts_of
from seg_models.weights.published import COUNTER, compare_tensors, import_tensors
from tests.published_lists import CASES, Case, from_lists

every_case = pytest.mark.parametrize("case", CASES, ids=[f"{case.layout}-{case.files[-2:][0]}" for case in CASES])


@every_case
def test_every_published_tensor_has_a_place_of_its_shape_and_every_place_a_tensor(case: Case) -> None:
    layout, tensors = LAYOUTS[case.layout], case.tensors()
    account = compare_tensors(case.model(), tensors, layout)
    assert account.complete, account.text()
    assert {theirs for theirs, _ in account.used} | set(account.left_behind) == set(tensors)
    assert len(account.used) == len({theirs for theirs, _ in account.used})


@every_case
def test_the_way_back_gives_the_published_tensors(case: Case) -> None:
    layout, tensors = LAYOUTS[case.layout], case.tensors()
    returned = layout.to_published(layout.to_ours(tensors))
    assert set(returned) == {name for name in tensors if not layout.leaves_behind(name)}
    for name, value in returned.items():
        torch.testing.assert_close(value, tensors[name], rtol=1e-6, atol=2e-5)  # CCNet's norms were moved by 1e-5


@every_case
def test_a_missing_tensor_is_named_and_refused(case: Case) -> None:
    layout, tensors = LAYOUTS[case.layout], case.tensors()
    lost = next(name for name in reversed(tensors) if not name.endswith(COUNTER) and not layout.leaves_behind(name))
    place = next(ours for ours, theirs in layout.sources(tensors).items() if lost in theirs)
    del tensors[lost]
    model = case.model()
    assert compare_tensors(model, tensors, layout).missing == (place,)
    with pytest.raises(ValueError, match=rf"1 missing \({place}\)".replace(".", r"\.")):
        import_tensors(model, tensors, layout)


@every_case
def test_a_tensor_without_a_place_is_refused_under_its_published_name(case: Case) -> None:
    tensors = {**case.tensors(), "extra.head.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"1 unused \(extra\.head\.weight\)"):
        import_tensors(case.model(), tensors, LAYOUTS[case.layout])


@every_case
def test_a_checkpoint_of_another_layout_is_refused_with_an_account(case: Case) -> None:
    layout = LAYOUTS[case.layout]
    wrong = {f"x.{name}": value for name, value in case.tensors().items()}
    with pytest.raises(ValueError, match=f"{re.escape(layout.origin)}: 0 tensors used; ") as refusal:
        import_tensors(case.model(), wrong, layout, partial=True)
    assert "unused (x." in str(refusal.value)


def test_every_layout_has_a_list_and_every_preset_of_a_layout_exists() -> None:
    assert {case.layout for case in CASES} == set(LAYOUTS)
    known = presets()
    assert [name for layout in LAYOUTS.values() for name in layout.presets if name not in known] == []


def test_every_preset_with_the_depth_of_a_list_takes_its_tensors() -> None:
    names = [name for name in LAYOUTS["ccnet_official"].presets if name != "ccnet_resnet101_official"]
    tensors = from_lists("ccnet_official_resnet101")
    for name in names:
        case = Case("ccnet_official", name, 19, ())
        assert compare_tensors(case.model(), tensors, LAYOUTS["ccnet_official"]).complete, name
    assert names


@pytest.mark.parametrize(
    ("file", "params"),
    [
        ("gscnn_official_wideresnet38", 137_278_190),
        ("ocrnet_mmseg_resnet101", 42_519_392 + 12_982_272 + 770 * 19),
        ("pspnet_mmseg_resnet50", 46_610_803 + 2_364_691),
        ("pspnet_paddleseg_resnet50", 65_498_995 + 2_364_947),
    ],
)
def test_a_list_has_the_parameters_of_the_sheet(file: str, params: int) -> None:
    running = ("running_mean", "running_var", COUNTER, "._mean", "._variance")
    assert sum(value.numel() for name, value in from_lists(file).items() if not name.endswith(running)) == params


@pytest.mark.parametrize(
    ("lists", "preset", "told"),
    [
        (("ccnet_official_resnet101",), "ccnet_resnet50", r"unused \(layer3\.6\.conv1\.weight|missing"),
        (
            ("fastfcn_official_resnet50", "fastfcn_official_jpu", "fastfcn_official_head_psp"),
            "fastfcn_resnet50_enc",
            r"missing \(head\.reduce\.conv\.weight",
        ),
    ],
    ids=("depth", "head"),
)
def test_a_checkpoint_of_another_depth_or_head_is_refused(lists: tuple[str, ...], preset: str, told: str) -> None:
    layout = LAYOUTS["ccnet_official" if preset.startswith("ccnet") else "fastfcn_official_enc"]
    with pytest.raises(ValueError, match=told):
        import_tensors(Case("", preset, 59, ()).model(), from_lists(*lists), layout)


def test_a_checkpoint_with_other_classes_names_the_layers_that_differ() -> None:
    case = next(case for case in CASES if case.layout == "hmsa_nvidia")
    differs = compare_tensors(case._replace(num_classes=65).model(), case.tensors(), LAYOUTS[case.layout]).misshapen
    assert {text.split()[0] for text in differs} == {
        f"module.ocr.{layer}.{part}" for layer in ("cls_head", "aux_head.2") for part in ("weight", "bias")
    }


def test_names_are_the_same_with_and_without_what_data_parallel_puts_before_them() -> None:
    case = CASES[0]
    wrapped = {f"module.{name}": value for name, value in case.tensors().items()}
    assert compare_tensors(case.model(), wrapped, LAYOUTS[case.layout]).complete


def test_a_layout_is_found_by_name_and_by_preset() -> None:
    assert find_layout("pspnet_mmseg") is LAYOUTS["pspnet_mmseg"]
    assert layouts_of("segformer_mit_b2") == ["segformer_official", "segformer_transformers"]
    with pytest.raises(
        ValueError, match=r"unknown layout 'psp_mmseg'.*did you mean 'pspnet_mmseg'.*known: ccnet_mmseg"
    ):
        find_layout("psp_mmseg")
