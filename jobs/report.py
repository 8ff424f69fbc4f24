"""One self-contained HTML page per run: what went in and out, figures, curves and pictures."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from jobs import report_page as html
from jobs.dry_run import show_plan
from jobs.report_charts import bars, parts
from jobs.report_gains import gains_section
from jobs.report_metrics import TITLES as FIGURE_TITLES
from jobs.report_sections import (
    check_section,
    classifiers_section,
    evaluation_sections,
    export_section,
    import_section,
    labels_section,
    sources_section,
    training_section,
)
from jobs.specs import ReportJob
from pipelines import storage
from seg_models import __version__

TITLES = {
    "ingest": "Ingest",
    "pssl": "Pseudo-labels",
    "autolabel": "Auto-labels",
    "train": "Training",
    "evaluate": "Evaluation",
    "compare": "Comparison",
    "predict": "Prediction",
    "check": "Dataset check",
    "export": "Export",
    "import": "Import",
    "unpack": "Unpacking",
}
FIGURES = {
    **FIGURE_TITLES,
    "miou_gain": "gain in mIoU",
    "loss": "last loss",
    "images_in": "images in",
    "labelled": "labelled",
    "evaluated": "evaluated",
    "predicted": "predicted",
    "written": "files written",
    "steps": "steps",
    "samples": "samples",
    "rejected": "rejected",
    "images_per_s": "images per second",
    "workers": "workers",
    "actors": "actors",
}
SCORES = (*FIGURE_TITLES, "miou_gain")
"""Of the figures those that stand in colour; the first ones."""
USED = {
    "pssl": "labelled",
    "autolabel": "labelled",
    "evaluate": "evaluated",
    "predict": "predicted",
    "unpack": "written",
}
MAX_REJECTED = 50
Section = Callable[[str, Mapping[str, Any]], list[str]]


def run(job: ReportJob, *, dry_run: bool = False) -> dict[str, Any]:
    """Write the page of a finished run again and print its address.

    Raises:
        ValueError: the folder holds no finished run.
    """
    folder = storage.normalise(job.run)
    if dry_run:
        return show_plan(job, {"verb": read_result(folder).get("verb"), "writes": storage.join(folder, "report.html")})
    place = write_report(folder)
    print(f"report: {place}")
    return {"report": place}


def write_report(folder: str) -> str:
    """Write `report.html` into a run's folder, from the files the run left there; return its place.

    Raises:
        ValueError: the folder holds no finished run.
    """
    folder = storage.normalise(folder)
    result = read_result(folder)
    verb = str(result.get("verb", "run"))
    place = storage.join(folder, "report.html")
    text = html.page(
        folder.rstrip("/").rpartition("/")[2],
        verb=TITLES.get(verb, verb),
        lines=header_lines(folder, result),
        sections=run_sections(folder, result),
    )
    storage.write_text(place, text)
    return place


def report_of(verb: str, job: Any) -> str:
    """Write the page of a job that has just ended, wherever that verb leaves its result; return its place."""
    if verb == "train":
        return write_report(storage.join(storage.normalise(job.output), job.name))
    if hasattr(job, "output"):
        return write_report(storage.normalise(job.output))
    folders = [f"{verb}-{job.labels}", f"{verb}-images"]
    runs = [storage.join(storage.normalise(job.dataset), "runs", folder) for folder in folders]
    return write_report(next(run for run in runs if storage.exists(storage.join(run, "result.json"))))


def read_result(folder: str) -> dict[str, Any]:
    """The figures of a finished run.

    Raises:
        ValueError: there are none.
    """
    place = storage.join(folder, "result.json")
    if not storage.exists(place):
        storage.require_dir(folder)
        raise ValueError(f"{folder}: no finished run here (result.json is missing)")
    result: dict[str, Any] = json.loads(storage.read_bytes(place))
    return result


def header_lines(folder: str, result: Mapping[str, Any]) -> list[str]:
    """Where the run lies, how long it took, its MLflow run, and what wrote the page."""
    seconds = result.get("seconds")
    tracked = result.get("mlflow") or {}
    facts = [f"took {html.duration(float(seconds))}"] if isinstance(seconds, (int, float)) else []
    facts += [f"MLflow run {tracked['run_id']} at {tracked['tracking_uri']}"] if tracked.get("run_id") else []
    return [folder, " · ".join(facts), written_by()]


def written_by() -> str:
    """Versions and time, for the header."""
    versions = " · ".join([f"segray {__version__}", *(f"{name} {version(name)}" for name in ("torch", "ray"))])
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{versions} · Python {platform.python_version()} · page written {now}"


def run_sections(folder: str, result: Mapping[str, Any]) -> list[str]:
    """The sections of one run; those it has nothing for are empty."""
    return [
        figures_section(result),
        rejected_section(result),
        check_section(result),
        training_section(folder, result),
        sources_section(result),
        classifiers_section(result),
        labels_section(result),
        *evaluation_sections(folder, result),
        gains_section(result),
        export_section(result),
        import_section(result),
        job_section(folder),
    ]


def figures_section(result: Mapping[str, Any]) -> str:
    """What went in, what came out, how fast."""
    figures = {shown: result[key] for key, shown in FIGURES.items() if isinstance(result.get(key), (int, float))}
    scores = sum(key in result for key in SCORES)
    phases = {name: float(value) for name, value in (result.get("phases") or {}).items()}
    return html.section(
        "Figures",
        html.tiles(figures, lead=scores),
        in_and_out(result),
        html.heading("Seconds in each phase, summed over the actors", bars(phases, suffix=" s")),
    )


def in_and_out(result: Mapping[str, Any]) -> str:
    """The images as one bar: used, there already, rejected."""
    total, rejected = result.get("images_in"), result.get("rejected", result.get("skipped"))
    if not isinstance(total, int) or not isinstance(rejected, int):
        return ""
    existing = int(result.get("existing", 0))
    used = USED.get(str(result.get("verb")), "usable")
    shares = {used: total - rejected - existing, "there already": existing, "rejected": rejected}
    if not existing:
        del shares["there already"]
    return parts(shares, colors=["c3", "c0", "cbad"] if existing else ["c3", "cbad"])


def rejected_section(result: Mapping[str, Any]) -> str:
    """Why rows were rejected, and which."""
    reasons = result.get("reasons") or {}
    rows = result.get("rejected_rows") or []
    more = f"{len(rows) - MAX_REJECTED} more stand in result.json." if len(rows) > MAX_REJECTED else ""
    return html.section(
        "Not used, and why",
        html.table(("reason", "images"), list(reasons.items())),
        html.heading("Which", html.table(("id", "reason"), [(r["id"], r["reason"]) for r in rows[:MAX_REJECTED]])),
        html.note(more),
    )


def job_section(folder: str) -> str:
    """The resolved settings."""
    place = storage.join(folder, "job.json")
    text = storage.read_bytes(place).decode() if storage.exists(place) else ""
    return html.section("Job", html.folded("resolved settings; `segray <verb> job.json` runs them again", text))
