"""The page of a whole walk: its stages, its arms, and what every one of them made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs import report_page as html
from jobs.report import evaluation_sections, example_pictures, pictures_section, series_of
from jobs.training.points import read_points
from jobs.walk import Walk


def write_walk_report(
    walk: Walk, summary: Mapping[str, Any], *, output: Path, arms: Mapping[str, str], best: str
) -> str:
    """Write `report.html` of a walk and return its path; `best` is the arm whose evaluation is shown in full."""
    first = next(iter(arms))
    sections = [
        arms_section(walk, arms, summary),
        stages_section(summary["stages"]),
        *labels_sections(walk),
        curves_section(output, arms),
        *evaluation_sections(str(output / "evaluate" / best), walk.stages[f"evaluate_{best}"]),
        pictures_section(
            str(output / "evaluate" / first),
            walk.stages[f"evaluate_{first}"],
            "fixed",
            f"The same pictures: {arms[first]}",
        ),
    ]
    path = output / "report.html"
    subtitle = f"ingest, PSSL, pre-training, fine-tuning, auto-labelling, evaluation in {summary['seconds']:.0f} s"
    path.write_text(html.page("segray: the whole walk", subtitle, sections), encoding="utf-8")
    return str(path)


def labels_sections(walk: Walk) -> list[str]:
    """Examples of every label set that the walk made."""
    titles = {
        "pssl": "Pseudo-labels from image classes: image, label",
        "pssl_photos": "Pseudo-labels of real photographs, three ImageNet classifiers: image, label",
        "autolabel": "Teacher labels: image, label (void stays the image)",
    }
    return [
        html.section(
            title,
            example_pictures(result["dataset"], labels=result["labels"], split=result.get("split")),
        )
        for stage, title in titles.items()
        if (result := walk.stages.get(stage)) is not None
    ]


def arms_section(walk: Walk, arms: Mapping[str, str], summary: Mapping[str, Any]) -> str:
    """mIoU of the arms, and IoU of every class side by side."""
    results = {arm: walk.stages[f"evaluate_{arm}"] for arm in arms}
    names = [row["class"] for row in results[next(iter(arms))]["classes"]]
    iou = {arm: {row["class"]: row["iou"] for row in result["classes"]} for arm, result in results.items()}
    rows = [[name, *("–" if iou[arm][name] is None else round(iou[arm][name], 4) for arm in arms)] for name in names]
    return html.section(
        "What the labels are worth",
        html.tiles({title: f"{summary['miou'][arm]:.3f}" for arm, title in arms.items()}),
        html.bars({title: summary["miou"][arm] for arm, title in arms.items()}, limit=1.0),
        "<p>mIoU on the same held-out images after the same number of fine-tuning steps, one seed.</p>",
        html.table(["IoU of class", *arms.values()], rows),
    )


def stages_section(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """Seconds and row counts of every stage."""
    rows = []
    for name, stage in stages.items():
        counts = [stage.get(key, "") for key in ("images_in", "labelled", "rejected")]
        rows.append((name, f"{stage['seconds']:.1f}", *(f"{count:,}" if count != "" else "" for count in counts)))
    return html.section("Stages", html.table(("stage", "seconds", "images in", "labelled", "rejected"), rows))


def curves_section(output: Path, arms: Mapping[str, str]) -> str:
    """Training loss of pre-training and of the arms."""
    runs = {"pretrain": "pre-training on pseudo-labels", **arms}
    points = {title: read_points(str(output / "runs" / name)) for name, title in runs.items()}
    series = {title: series_of(found, ("train/loss",)).get("train/loss", []) for title, found in points.items()}
    return html.section(
        "Training loss",
        html.curves({title: series[title] for title in arms.values()}, title="fine-tuning"),
        html.curves({runs["pretrain"]: series[runs["pretrain"]]}, title=runs["pretrain"]),
    )
