"""The page of a whole walk: its stages, its arms side by side, and what every stage made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs import report_page as html
from jobs.report import written_by
from jobs.report_charts import Points, bars, color_of, curves
from jobs.report_pictures import class_key, compared, label_examples
from jobs.report_sections import evaluation_sections, series_of
from jobs.training.points import read_points
from jobs.walk import COUNTS, Walk
from pipelines.labels import LabelSpace

LABEL_STAGES = {
    "pssl": "Pseudo-labels from image classes",
    "pssl_photos": "Pseudo-labels of real photographs, by three ImageNet classifiers",
    "autolabel": "Teacher labels",
}


def write_walk_report(
    walk: Walk,
    summary: Mapping[str, Any],
    *,
    output: Path,
    arms: Mapping[str, str],
    best: str,
    title: str = "The whole walk",
) -> str:
    """Write `report.html` of a walk and return its path.

    Args:
        arms: title of every arm by its name, the one to compare with first.
        best: the arm whose confusions and worst images are shown.
        title: of the page.
    """
    last = walk.stages[f"evaluate_{best}"]
    *_, confusion, _, worst = evaluation_sections(str(output / "evaluate" / best), last)
    sections = [
        result_section(walk, summary, arms),
        classes_section(walk, arms),
        arms_section(walk, output, arms),
        stages_section(summary["stages"]),
        *labels_sections(walk),
        curves_section(output, arms),
        *(_renamed(part, arms[best]) for part in (confusion, worst)),
        runs_section(summary["stages"]),
    ]
    lines = [str(output), f"took {html.duration(summary['seconds'])} in all", written_by()]
    path = output / "report.html"
    path.write_text(html.page(title, verb="segray", lines=lines, sections=sections), encoding="utf-8")
    return str(path)


def _renamed(section: str, arm: str) -> str:
    """A section of one arm with the arm in its heading."""
    return section.replace("</h2>", f" · {html.escape(arm)}</h2>", 1)


def result_section(walk: Walk, summary: Mapping[str, Any], arms: Mapping[str, str]) -> str:
    """mIoU of the arms, and the walk in a few steps."""
    scores = {arms[arm]: float(summary["miou"][arm]) for arm in arms}
    first = walk.stages[f"evaluate_{next(iter(arms))}"]
    text = (
        f"mIoU on the same {first['evaluated']} held-out images after the same number of fine-tuning steps; one seed."
    )
    return html.section(
        "Result",
        html.tiles({name: f"{score:.3f}" for name, score in scores.items()}, lead=len(scores)),
        bars(scores, limit=1.0, colored=True),
        html.note(text),
        html.heading("How it came about", html.steps(_steps(walk, arms))),
    )


def _steps(walk: Walk, arms: Mapping[str, str]) -> list[tuple[str, str]]:
    stages = walk.stages
    ingests = [stage for name, stage in stages.items() if name.startswith("ingest")]
    total, rejected = (sum(stage[key] for stage in ingests) for key in ("images_in", "rejected"))
    pssl, pretrain, teacher = stages["pssl"], stages["pretrain"], stages["autolabel"]
    tuned = stages[f"train_{next(iter(arms))}"]
    return [
        ("Ingest", f"{total:,} images into {len(ingests)} datasets, {rejected} rejected"),
        ("PSSL", f"{pssl['labelled']:,} images labelled by {len(pssl['skipped_maps'])} classifiers"),
        ("Pre-train", f"{pretrain['steps']:,} steps on the pseudo-labels, loss {pretrain['loss']:.3f}"),
        ("Fine-tune", f"{len(arms)} arms of {tuned['steps']:,} steps"),
        ("Auto-label", f"{teacher['labelled']:,} images by the teacher, {teacher['kept']:.0%} of the pixels kept"),
        ("Evaluate", f"{stages[f'evaluate_{next(iter(arms))}']['evaluated']:,} held-out images"),
    ]


def classes_section(walk: Walk, arms: Mapping[str, str]) -> str:
    """IoU of every class, arm beside arm."""
    iou = {arm: {row["class"]: row["iou"] for row in walk.stages[f"evaluate_{arm}"]["classes"]} for arm in arms}
    names = list(iou[next(iter(arms))])
    rows = [
        [name, *("–" if iou[arm][name] is None else round(float(iou[arm][name]), 3) for arm in arms)] for name in names
    ]
    return html.section("IoU of every class", html.table(["class", *arms.values()], rows))


def arms_section(walk: Walk, output: Path, arms: Mapping[str, str]) -> str:
    """The fixed pictures of the evaluations, one row an image, one column an arm."""
    results = {title: walk.stages[f"evaluate_{arm}"] for arm, title in arms.items()}
    fixed = {
        title: [entry for entry in result["pictures"] if entry["kind"] == "fixed"] for title, result in results.items()
    }
    folders = {title: str(output / "evaluate" / arm) for arm, title in arms.items()}
    space = LabelSpace.model_validate(next(iter(results.values()))["label_space"])
    return html.section("The same images, by every arm", class_key(space), compared(folders, fixed))


def stages_section(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """What every stage took and made, with its place in time."""
    total = sum(stage["seconds"] for stage in stages.values()) or 1.0
    words = ("images in", "written", "rejected", "seconds")
    head = "".join(f'<th scope="col" class="n">{word}</th>' for word in words)
    rows, start = [], 0.0
    for name, stage in stages.items():
        counts = [html.number(stage[key]) if key in stage else "" for key in COUNTS]
        figures = "".join(f'<td class="n">{figure}</td>' for figure in (*counts, f"{stage['seconds']:.1f}"))
        style = f"margin-left:{start / total:.2%};width:{stage['seconds'] / total:.2%}"
        place = f'<td class="track"><div class="fill" style="{style}"></div></td>'
        rows.append(f'<tr><th scope="row">{html.escape(name.replace("_", " "))}</th>{figures}{place}</tr>')
        start += stage["seconds"]
    body = (
        f'<thead><tr><th scope="col">stage</th>{head}<th scope="col">when</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody>"
    )
    return html.section("Stages", f'<div class="scroll"><table class="stages">{body}</table></div>')


def labels_sections(walk: Walk) -> list[str]:
    """Examples of every label set that the walk made."""
    return [
        html.section(
            title, label_examples(result["dataset"], labels=result["labels"], split=result.get("split")), _kept(result)
        )
        for stage, title in LABEL_STAGES.items()
        if (result := walk.stages.get(stage)) is not None
    ]


def _kept(result: Mapping[str, Any]) -> str:
    kept = {name: 100.0 * share for name, share in (result.get("kept_share") or {}).items() if share is not None}
    title = f"Pixels of each class with confidence {result.get('threshold', 0):g} or more; the others are void (black)"
    return html.heading(title, bars(kept, limit=100.0, suffix=" %"))


def curves_section(output: Path, arms: Mapping[str, str]) -> str:
    """Training loss and learning rate of pre-training and of the arms."""

    def series(run: str, name: str) -> Points:
        return series_of(read_points(str(output / "runs" / run)), name)

    loss = {title: series(arm, "train/loss") for arm, title in arms.items()}
    charts = [
        curves({"loss": series("pretrain", "train/loss")}, title="pre-training loss", first_color=color_of(3)),
        curves(loss, title="fine-tuning loss"),
        curves({"rate": series(next(iter(arms)), "train/lr")}, title="learning rate of every arm"),
    ]
    return html.section("Training", f'<div class="plots">{"".join(charts)}</div>')


def runs_section(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """The MLflow run of every stage."""
    rows = [
        (name.replace("_", " "), stage["mlflow_run_id"]) for name, stage in stages.items() if "mlflow_run_id" in stage
    ]
    return html.section("MLflow runs", html.table(("stage", "run"), rows))
