"""`segray recipes`: the named recipes with their steps, batch, crop and rate."""

from __future__ import annotations

import inspect
import json
from typing import Any

from jobs.dry_run import show_plan
from jobs.specs import RecipesJob
from seg_models.recipes import RECIPES, list_recipes


def run(job: RecipesJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Print the table of recipes (or JSON) and return it."""
    names = [name for name in list_recipes() if job.like in name]
    if not names:
        raise ValueError(f"no name of the {len(RECIPES)} recipes holds {job.like!r}")
    if dry_run:
        return show_plan(job, {"recipes": names})
    rows = [_row(name) for name in names]
    print(json.dumps(rows, indent=2) if job.json_output else _table(rows))
    return {"recipes": rows}


def _row(name: str) -> dict[str, Any]:
    recipe = RECIPES[name]()
    return {
        "name": name,
        "model": recipe.model.arch,
        "steps": recipe.steps,
        "global_batch": recipe.global_batch,
        "crop": list(recipe.augment.crop),
        "optimizer": recipe.optimizer.kind,
        "lr": recipe.optimizer.lr,
        "about": (inspect.getdoc(RECIPES[name]) or "").partition("\n")[0],
    }


def _table(rows: list[dict[str, Any]]) -> str:
    width = max(len(row["name"]) for row in rows)
    lines = [f"{'name':<{width}} {'steps':>7} {'batch':>5} {'crop':>9}  {'optimizer':<9} {'rate':>6}  what"]
    for row in rows:
        crop = "x".join(str(side) for side in row["crop"])
        lines.append(
            f"{row['name']:<{width}} {row['steps']:>7,} {row['global_batch']:>5} {crop:>9}  {row['optimizer']:<9} "
            f"{row['lr']:>6g}  {row['about']}"
        )
    return "\n".join(lines)
