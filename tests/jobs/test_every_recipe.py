"""Every published recipe builds as it is on the meta device, and trains two steps in a reduced form.

Reduced by one rule for all: backbones keep their name and kind and lose depth and width, channels of heads and crops
shrink, batches have two images. Optimizer, schedule, losses and augmentation stay; so does the code of `segray train`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from jobs.training.model import fresh_model
from jobs.training.plan import Worker
from pipelines.samples import Part, SampleIndex, build_index
from seg_models.backbones.timm_backbone import BackboneSpec, change_backbones, without_weights
from seg_models.recipes import list_recipes, resolve_recipe
from seg_models.recipes.recipe import AugmentSpec, LossSpec, Recipe
from seg_models.recipes.sampling import SamplingSpec
from seg_models.spec import ModelSpec, Spec
from tests.jobs.tiny_training import CPU, plan_of, train_alone, with_centroids
from tests.tiny_data import SPACE, write_dataset

SpecT = TypeVar("SpecT", bound=Spec)

TINY: dict[str, dict[str, Any]] = {
    "resnet": {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 32], "stem_width": 8},
    "wideresnet38": {"width": 1 / 16, "depths": [1, 1, 1, 1, 1, 1]},
    "hrnet": {"width": 8, "num_blocks": 1, "num_modules": [1, 1, 1]},
    "mit": {"widths": [8, 16, 20, 32], "depths": [1, 1, 1, 1]},
    "swin": {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
}
"""Arguments that take depth and width from a family of networks; a family that is not here is small as it is."""
SIDE, MOST_CHANNELS, TILE = 64, 16, 16
MOST_UNCHANGED = 0.1
"""Share of the tensors: branches that begin switched off learn one step later, a released layout has an unused one."""


def reduced(recipe: Recipe) -> Recipe:
    """The same recipe at a size that takes a fraction of a second."""
    changes = {
        "model": narrow(change_backbones(without_weights(recipe.model), tiny)),
        "augment": shrunk(recipe.augment),
        "loss": mined(recipe),
        "sampling": adapted(recipe.sampling),
        "schedule": recipe.schedule.model_copy(update={"warmup_steps": min(1, recipe.schedule.warmup_steps)}),
        "steps": 2,
        "global_batch": 2,
        "lanes": 2,
    }
    return Recipe.model_validate({**recipe.model_dump(), **changes})


def tiny(backbone: BackboneSpec) -> dict[str, Any]:
    """Arguments of the family whose name the network's begins with."""
    family = next((arguments for name, arguments in TINY.items() if backbone.name.startswith(name)), {})
    return {"model_kwargs": {**backbone.model_kwargs, **family}}


def narrow(spec: SpecT) -> SpecT:
    """The same settings with few channels in heads, wherever they stand."""
    changes: dict[str, Any] = {}
    for name, value in spec:
        if isinstance(value, Spec) and not isinstance(value, BackboneSpec):
            changes[name] = narrow(value)
        elif isinstance(value, int) and name.endswith(("channels", "width")):
            changes[name] = min(value, MOST_CHANNELS)
    return spec.model_copy(update=changes)


def adapted(sampling: SamplingSpec) -> SamplingSpec:
    """The same sampling with tiles and classes that the tiny images have."""
    table = sampling.model_dump()
    if table["class_uniform"] is not None:
        table["class_uniform"] |= {"tile": TILE, "share": 1.0}
    for rule in table["parts"]:
        rule["centroids_of"] = SPACE.names[1:]
    return SamplingSpec.model_validate(table)


def shrunk(augment: AugmentSpec) -> AugmentSpec:
    """The same augmentation at crops whose short side is `SIDE`."""
    factor = SIDE / min(augment.crop)
    crop = tuple(round(side * factor) for side in augment.crop)
    short_side = augment.short_side and round(augment.short_side * factor)
    return augment.model_copy(update={"crop": crop, "short_side": short_side})


def mined(recipe: Recipe) -> LossSpec:
    """The same loss with as large a share of a crop's pixels as hard ones."""
    if recipe.loss.ohem is None:
        return recipe.loss
    height, width = recipe.augment.crop
    few = shrunk(recipe.augment).crop
    kept = recipe.loss.ohem.min_kept * few[0] * few[1] // (height * width)
    return recipe.loss.model_copy(update={"ohem": recipe.loss.ohem.model_copy(update={"min_kept": kept})})


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> SampleIndex:
    dataset = write_dataset(tmp_path_factory.mktemp("data"), shard_sizes=(2, 2))
    parts = [Part(dataset=dataset.root), Part(dataset=dataset.root, name="autolabels")]
    return with_centroids(build_index(parts), tile_px=TILE)


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_builds_on_the_meta_device(name: str) -> None:
    spec = without_weights(resolve_recipe(name).model)
    with torch.device("meta"):
        model = spec.build(19)
    assert model.num_classes == 19
    assert all(value.is_meta for value in model.parameters())


@pytest.mark.parametrize("name", list_recipes())
def test_a_recipe_trains_two_steps_in_a_reduced_form(name: str, index: SampleIndex, tmp_path: Path) -> None:
    recipe = reduced(resolve_recipe(name))
    plan = plan_of(index, tmp_path, recipe)
    before, _ = fresh_model(plan, Worker(rank=0, world=1, device=CPU))
    after, figures = train_alone(plan)  # refuses a loss that is not finite
    assert figures["steps"] == 2
    start = dict(before.named_parameters())
    same = [name for name, value in after.named_parameters() if torch.equal(value, start[name])]
    assert len(same) <= MOST_UNCHANGED * len(start), same
    assert all(torch.isfinite(value).all() for value in after.parameters())


def test_the_reduced_form_keeps_what_a_recipe_fixes() -> None:
    recipe = resolve_recipe("cft_mit_b2_ade20k")
    small = reduced(recipe)
    assert (small.optimizer, small.loss) == (recipe.optimizer, recipe.loss)
    assert small.schedule.kind == recipe.schedule.kind
    assert small.model.arch == recipe.model.arch
    assert parameters(small.model) < parameters(recipe.model) / 100


def parameters(spec: ModelSpec) -> int:
    with torch.device("meta"):
        return sum(value.numel() for value in without_weights(spec).build(19).parameters())
