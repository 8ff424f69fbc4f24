"""`segray import`: a published checkpoint -> a checkpoint of ours, with an account of every tensor."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs.dry_run import show_plan
from jobs.specs import ImportJob
from jobs.tracking import check_tracking, track
from pipelines import storage
from pipelines.tables import differing_keys
from seg_models import __version__
from seg_models.backbones.timm_backbone import without_weights
from seg_models.checkpoints import MODEL_FILE, WEIGHTS_FILE, save_model
from seg_models.models import build_shapes
from seg_models.outputs import SegModel
from seg_models.spec import preset
from seg_models.weights.files import file_sha256, load_tensors, resolve_weights, weights_place
from seg_models.weights.layouts import LAYOUTS, find_layout
from seg_models.weights.published import ImportAccount, compare_tensors, import_tensors


def run(job: ImportJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Import; write `model/`, `job.json` and `result.json`, print the account.

    Returns:
        The result, or the plan of a dry run.

    Raises:
        ValueError: what is wrong with the job, or a checkpoint that does not fit; nothing is written then.
    """
    output = storage.normalise(job.output)
    if dry_run:
        check_tracking(job, dry_run=True)
        return show_plan(job, planned(job, output))
    storage.check_writable(output)
    check_tracking(job)
    path = checkpoint_file(job)
    model, account = imported(job, load_tensors(path))
    with track(job, verb="import", output=output) as tracked:
        storage.write_text(storage.join(output, "job.json"), job.model_dump_json(indent=2))
        origin = {"checkpoint": job.checkpoint, "sha256": file_sha256(path), "layout": job.layout}
        info = publish(job, model, account, origin, output)
        table = {
            "verb": "import",
            "model": storage.join(output, "model"),
            "sha256": info["sha256"],
            "imported": origin,
            "account": asdict(account),
            "unlike": unlike(job),
            "mlflow": tracked.address,
        }
        storage.write_text(storage.join(output, "result.json"), json.dumps(table, indent=2))
        tracked.set_tags({"layout": job.layout, "architecture": job.model.arch})
        tracked.log_dict(table, "result.json")
    print(f"{account.text()}\n{table['model']}: {info['params']:,} parameters, {job.classes.num_classes} classes")
    if table["unlike"]:
        print(f"segray: {table['unlike']}", file=sys.stderr)
    return table


def planned(job: ImportJob, output: str) -> dict[str, Any]:
    """What would be imported, with the account where the file is on this machine; nothing is fetched."""
    if storage.is_remote(job.checkpoint):
        account = "made when the file has been copied"
    elif job.checkpoint.startswith("https://") and not weights_place(job.checkpoint, sha256=job.sha256).is_file():
        account = "made when the file has been fetched"
    else:
        model = build_shapes(job.model, job.classes.num_classes)
        account = compare_tensors(model, load_tensors(checkpoint_file(job)), find_layout(job.layout)).text()
    return {
        "layout": job.layout,
        "classes": job.classes.num_classes,
        "account": account,
        "unlike": unlike(job),
        "writes": f"{output}/model",
    }


def unlike(job: ImportJob) -> str | None:
    """How the settings differ from those that such files are made for; None where they do not.

    Tensors cannot tell: means of the input or another attention change scores and no shape.
    """
    ours = without_weights(job.model).model_dump(mode="json")
    found = {
        name: differing_keys(ours, without_weights(preset(name)).model_dump(mode="json"))
        for name in find_layout(job.layout).presets
    }
    nearest = min(found, key=lambda name: len(found[name]))
    if not found[nearest]:
        return None
    listed = "; ".join(found[nearest][:5]) + (" …" if len(found[nearest]) > 5 else "")
    return f"files of layout {job.layout!r} are for {nearest!r}, which has other settings ({listed}): scores may differ"


def checkpoint_file(job: ImportJob) -> Path:
    """The published file on this machine; an object of a store is copied into the cache.

    Raises:
        ValueError: it is not there, cannot be fetched or hashes to something else.
    """
    remote = storage.is_remote(job.checkpoint)
    ref = str(storage.local_copy(job.checkpoint)) if remote else job.checkpoint
    return resolve_weights(ref, sha256=job.sha256)


def imported(job: ImportJob, tensors: Mapping[str, Tensor]) -> tuple[SegModel, ImportAccount]:
    """The network with the published tensors in it; what a partial import leaves new depends on the seed alone.

    Raises:
        ValueError: they do not fit; the message tells by how much, and which layout has such names.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        model = without_weights(job.model).build(job.classes.num_classes)
    try:
        return model, import_tensors(model, tensors, find_layout(job.layout), partial=job.partial)
    except ValueError as error:
        raise ValueError(f"{job.checkpoint}: {error}{_advice(job, model, tensors)}") from error


def publish(
    job: ImportJob, model: SegModel, account: ImportAccount, origin: Mapping[str, str], output: str
) -> dict[str, Any]:
    """Write the network to `<output>/model/`, model.json last."""
    provenance = {
        "imported_from": dict(origin),
        "left_new": list(account.missing),
        "versions": {"segray": __version__, "torch": torch.__version__},
    }
    space = job.classes.model_dump(mode="json")
    with tempfile.TemporaryDirectory() as scratch:
        info = save_model(Path(scratch), model=model, spec=job.model, label_space=space, provenance=provenance)
        for name in (WEIGHTS_FILE, MODEL_FILE):
            storage.write_bytes(storage.join(output, "model", name), Path(scratch, name).read_bytes())
    return info


def _advice(job: ImportJob, model: SegModel, tensors: Mapping[str, Tensor]) -> str:
    """The layout that knows most of the names, if it is another one, and the presets it is made for."""
    places = {name: len(set(layout.sources(tensors)) & set(model.state_dict())) for name, layout in LAYOUTS.items()}
    best = max(places, key=lambda name: places[name])
    if places[best] > places[job.layout]:
        return f"; layout {best!r} has a place for {places[best]} of them"
    known = {name: len(layout.sources(tensors)) for name, layout in LAYOUTS.items()}
    best = max(known, key=lambda name: known[name])
    if known[best] > known[job.layout]:
        return f"; the names are those of layout {best!r}, for {', '.join(LAYOUTS[best].presets)}"
    return "; partial = true imports what fits" if places[job.layout] else ""
