"""Recipes by name: published training settings, and tables that differ from one in a few keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from seg_models.recipes import ccnet, cft, condnet, danet, dense, fastfcn, gated_scnn, hmsa, ocrnet, pspnet, pyramids
from seg_models.recipes.recipe import AugmentSpec, EmaSpec, LossSpec, OhemSpec, OptimizerSpec, Recipe, ScheduleSpec
from seg_models.spec import ModelSpec, did_you_mean, import_object, merge

RECIPES: dict[str, Callable[[], Recipe]] = {
    function.__name__: function
    for module in (ccnet, cft, condnet, danet, dense, fastfcn, gated_scnn, hmsa, ocrnet, pspnet, pyramids)
    for function in module.RECIPES
}


def list_recipes() -> list[str]:
    """Names of the built-in recipes, in alphabetical order."""
    return sorted(RECIPES)


def resolve_recipe(value: Recipe | str | Mapping[str, Any]) -> Recipe:
    """Turn a recipe's name, a table or a finished recipe into a Recipe.

    A name is built-in or `package.module:function`. A table with `base` (a name) holds only what differs from it;
    in its `model` table, `preset` or `arch` replaces the model and other keys change the base's model.

    Raises:
        ValueError: unknown name or key; the message holds the nearest one.
    """
    if isinstance(value, Recipe):
        return value
    if isinstance(value, str):
        return _named(value)
    if not isinstance(value, Mapping):
        raise ValueError(f"a recipe is a name or a table, found {value!r}")
    table = dict(value)
    if "base" not in table:
        return Recipe.model_validate(table)
    base = resolve_recipe(table.pop("base"))
    model = _changed_model(base.model, table.pop("model", {}))
    rest = merge(base.model_dump(exclude={"model"}), table)
    return Recipe.model_validate({**rest, "model": model})


def _named(name: str) -> Recipe:
    if ":" in name:
        recipe = import_object(name)()
        if not isinstance(recipe, Recipe):
            raise ValueError(f"{name!r} returns {type(recipe).__name__}, not a Recipe")
        return recipe
    if name not in RECIPES:
        close = did_you_mean(name, RECIPES)
        raise ValueError(f"unknown recipe {name!r}{close}; `segray recipes` lists all {len(RECIPES)}")
    return RECIPES[name]()


def _changed_model(
    base: ModelSpec, changes: ModelSpec | str | Mapping[str, Any]
) -> ModelSpec | str | Mapping[str, Any]:
    """The base's model changed, or the other model that is named: the recipe reads it and tells where it is wrong."""
    if isinstance(changes, Mapping) and not {"preset", "arch"} & set(changes):
        return merge(base.model_dump(), changes) if changes else base
    return changes


__all__ = [
    "RECIPES",
    "AugmentSpec",
    "EmaSpec",
    "LossSpec",
    "OhemSpec",
    "OptimizerSpec",
    "Recipe",
    "ScheduleSpec",
    "list_recipes",
    "resolve_recipe",
]
