"""`segray export`: a checkpoint -> torch.export and ONNX files, compared with the eager model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.dry_run import show_plan
from jobs.specs import ExportJob
from jobs.tracking import check_tracking, track
from pipelines import storage
from pipelines.published import Checkpoint, load_checkpoint, open_checkpoint
from seg_models.export import ExportResult, export_model


def run(job: ExportJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Export; write `model.pt2` and/or `model.onnx`, `classes.json`, `job.json` and `result.json`.

    Returns:
        The result, or the plan of a dry run.

    Raises:
        ValueError: what is wrong with the job, before work starts; or a file that differs from the eager model.
    """
    checkpoint, output = open_checkpoint(job.checkpoint), storage.normalise(job.output)
    if dry_run:
        check_tracking(job, dry_run=True)
        return show_plan(job, planned(job, checkpoint, output))
    storage.check_writable(output)
    check_tracking(job)
    with track(job, verb="export", output=output) as tracked:
        storage.write_text(storage.join(output, "job.json"), job.model_dump_json(indent=2))
        tracked.set_tags({"checkpoint": checkpoint.uri, "architecture": checkpoint.arch})
        files = export_files(job, checkpoint, output)
        table = {"verb": "export", "checkpoint": checkpoint.record, "files": files, "mlflow": tracked.address}
        storage.write_text(storage.join(output, "classes.json"), checkpoint.label_space.model_dump_json(indent=2))
        storage.write_text(storage.join(output, "result.json"), json.dumps(table, indent=2))
        tracked.log_metrics({f"export/{file['format']}/max_rel_diff": file["max_rel_diff"] for file in files})
        tracked.log_dict(table, "result.json")
    for file in files:
        print(f"{file['path']}: {file['size_bytes']} bytes, largest relative difference {file['max_rel_diff']:.1e}")
    return table


def planned(job: ExportJob, checkpoint: Checkpoint, output: str) -> dict[str, Any]:
    """What would be exported."""
    return {
        "checkpoint": checkpoint.record,
        "parameters": checkpoint.info.get("params"),
        "writes": [storage.join(output, f"model.{kind}") for kind in job.formats],
    }


def export_files(job: ExportJob, checkpoint: Checkpoint, output: str) -> list[dict[str, Any]]:
    """Export in a scratch folder, then copy to the output: local or an object store."""
    model = load_checkpoint(checkpoint).model
    with tempfile.TemporaryDirectory() as scratch:
        done: Sequence[ExportResult] = export_model(
            model, directory=Path(scratch), formats=job.formats, size=job.size, tolerance=job.tolerance
        )
        storage.upload_dir(Path(scratch), output)
    return [
        {
            "format": one.format,
            "path": storage.join(output, one.path.name),
            "size_bytes": one.size_bytes,
            "size": list(job.size),
            "max_abs_diff": one.max_abs_diff,
            "max_rel_diff": one.max_rel_diff,
        }
        for one in done
    ]
