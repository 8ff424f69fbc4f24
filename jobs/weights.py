"""`segray weights`: the files of trained weights that jobs need, for a machine without internet."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jobs.dry_run import show_plan
from jobs.specs import WeightsJob
from pipelines.weights_list import WeightsFile, backbone_files, classifier_file


def run(job: WeightsJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Print the table of files (or JSON) and return it; nothing is fetched.

    Returns:
        `files` and, with `check`, `failed`: whether any of them is missing or wrong.

    Raises:
        ValueError: neither an ensemble nor a recipe, or a network that timm does not know.
    """
    classifiers = job.ensemble.resolve()
    if dry_run:
        return show_plan(job, {"classifiers": [spec.label for spec in classifiers]})
    files = [classifier_file(spec) for spec in classifiers]
    files += backbone_files(job.recipe.model) if job.recipe is not None else []
    rows = [asdict(file) for file in files]
    print(json.dumps(rows, indent=2) if job.json_output else _text(files))
    return {"files": rows, "failed": job.check and not all(file.usable for file in files)}


def _text(files: list[WeightsFile]) -> str:
    if not files:
        return "no trained weights are needed"
    lines = [line for file in files for line in _lines(file)]
    counts = Counter(file.state for file in files)
    states = ", ".join(f"{count} {state}" for state, count in counts.items())
    megabytes = sum(file.size_bytes or 0 for file in files) / 1e6
    return "\n".join([*lines, f"{len(files)} files, {megabytes:,.0f} MB: {states}"])


def _lines(file: WeightsFile) -> list[str]:
    about = "" if file.usable else "about "
    size = f"{about}{file.size_bytes / 1e6:,.1f} MB" if file.size_bytes is not None else "size unknown"
    sha256 = f"SHA-256 {file.sha256}" if file.sha256 is not None else "no SHA-256 known"
    lines = [f"{file.state:<9}{file.name}  {size}, {sha256}"]
    lines += [f"         from {file.source}"] if file.source is not None else []
    lines += [f"         at   {file.place}{_whole(file.place)}"] if file.place is not None else []
    return lines


def _whole(place: str) -> str:
    """The hub client keeps a repository's files behind links, so no single file can be put there."""
    return " (the folder as the hub's client leaves it)" if Path(place).name.startswith("models--") else ""
