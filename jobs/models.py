"""`segray models`: the named models with parameters, multiply-adds and input size."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from jobs.dry_run import show_plan
from jobs.specs import ModelsJob
from seg_models.models import ModelInfo, describe_model, list_models


def run(job: ModelsJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Print the table of models (or JSON) and return it; nothing is downloaded or allocated."""
    wanted = [job.model] if job.model is not None else list_models()
    infos = [describe_model(model, num_classes=job.num_classes) for model in wanted]
    if dry_run:
        return show_plan(job, {"models": [info.name for info in infos]})
    rows = [asdict(info) for info in infos]
    print(json.dumps(rows, indent=2) if job.json_output else _table(infos))
    return {"models": rows}


def _table(infos: list[ModelInfo]) -> str:
    width = max(len(info.name) for info in infos)
    lines = [f"{'name':<{width}} {'params M':>9} {'aux M':>7} {'GMAC':>8}  input"]
    lines += [
        f"{info.name:<{width}} {info.params_main / 1e6:>9.3f} {info.params_aux / 1e6:>7.3f} {info.gmac:>8.2f}  "
        f"{info.input_size[0]}x{info.input_size[1]}"
        for info in infos
    ]
    lines.append(f"for {infos[0].num_classes} classes; GMAC counts convolutions and matrix products of the main path")
    return "\n".join(lines)
