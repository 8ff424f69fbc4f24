"""Scan a dataset before training on it: label values, class pixels, sizes, unreadable rows, duplicates between splits.

Workers read shards and return counts; the driver adds them up and judges. Errors make a dataset unfit for training
or evaluation; warnings are for a person to look at.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.labels import LabelSpace
from pipelines.quality_worker import CheckShard, CheckWorker, ShardFacts
from pipelines.shards import ComputeSpec, ShardTask, run_shards
from pipelines.tables import Dataset, Table

SHOWN = 10
"""Names in one line of the report; result.json holds all."""


@dataclass(frozen=True)
class ClassRow:
    """One class over the whole label set."""

    index: int
    name: str
    pixels: int
    share: float
    """Of the pixels that are not void."""
    images: int
    """Labels with at least one pixel of the class."""


@dataclass(frozen=True)
class QualityReport:
    """What a scan found."""

    dataset: str
    labels: str | None
    splits: dict[str, int]
    """Images of each split."""
    images_in: int
    good: int
    """Images with data and, where there is a label set, with a label."""
    rejected: int
    reasons: dict[str, int]
    rejected_rows: dict[str, str]
    """Reason by id."""
    classes: tuple[ClassRow, ...]
    void_pixels: int
    class_images: dict[str, int]
    """Images by image-level class index."""
    sizes: dict[str, int]
    """Images by width x height."""
    duplicates_between_splits: tuple[tuple[str, ...], ...]
    """Groups of `split: id` whose files are equal bytes."""
    num_duplicates_within_splits: int
    all_void: tuple[str, ...]
    """Ids whose label is void everywhere."""
    unseen_classes: tuple[str, ...]
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All fields and the label pixels by class name, JSON-serialisable."""
        rows = [{"id": row_id, "reason": reason} for row_id, reason in self.rejected_rows.items()]
        pixels = {row.name: row.pixels for row in self.classes} | ({"(void)": self.void_pixels} if self.classes else {})
        return asdict(self) | {"rejected_rows": rows, "class_pixels": pixels}

    def text(self) -> str:
        """The table that is printed."""
        lines = [f"{self.dataset}: {self.images_in} images in = {self.good} good + {self.rejected} rejected"]
        lines += [f"{count:>10} x {reason}" for reason, count in self.reasons.items()]
        if self.labels is not None:
            lines.append(f"{'index':>6} {'pixels':>14} {'share':>8} {'images':>8}  class of {self.labels!r}")
            seen = [row for row in self.classes if row.pixels or len(self.classes) <= 256]
            lines += [f"{row.index:>6} {row.pixels:>14} {row.share:>8.2%} {row.images:>8}  {row.name}" for row in seen]
            lines.append(f"{'void':>6} {self.void_pixels:>14}")
        sizes = sorted(self.sizes.items(), key=lambda item: -item[1])
        lines += [f"{count:>10} images of {size} px" for size, count in sizes[:SHOWN]]
        lines += [f"{'':>10} and {len(sizes) - SHOWN} more sizes"] if len(sizes) > SHOWN else []
        lines += [f"warning: {line}" for line in self.warnings] + [f"error: {line}" for line in self.errors]
        return "\n".join(lines)


@dataclass
class _Sums:
    """Facts of all shards added up."""

    sizes: Counter[str] = field(default_factory=Counter)
    class_images: Counter[str] = field(default_factory=Counter)
    pixels: Counter[int] = field(default_factory=Counter)
    label_images: Counter[int] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    owners: dict[str, list[tuple[str, str]]] = field(default_factory=lambda: defaultdict(list))
    all_void: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    labelled: int = 0
    rows: Counter[str] = field(default_factory=Counter)

    def add(self, shard: ShardFacts) -> None:
        """Add one shard."""
        self.sizes.update(shard.sizes)
        self.class_images.update(shard.class_images)
        self.pixels.update(shard.pixels)
        self.label_images.update(shard.label_images)
        self.reasons.update(shard.reasons)
        for row_id, digest in shard.digests.items():
            self.owners[digest].append((shard.split, row_id))
        self.all_void += shard.all_void
        self.errors += shard.errors
        self.labelled += shard.num_labelled
        self.rows[shard.split] += shard.num_rows


def check_dataset(root: str, *, labels: str = "human", compute: ComputeSpec) -> QualityReport:
    """Scan a dataset and one of its label sets; Ray must be running.

    A dataset without any label set is scanned for its images alone.

    Raises:
        ValueError: no dataset, no label set of that name beside others, or no images.
    """
    dataset = Dataset.open(root)
    table = label_table(dataset, labels)
    space = table.label_space if table is not None else dataset.info.label_space
    shards = pair_shards(dataset.images, table)
    if not shards:
        raise ValueError(f"{dataset.root}: the dataset has no images; `segray ingest` has not committed any shard")
    sums = _Sums()
    run_shards(
        CheckWorker,
        tasks=[ShardTask(str(shard.key), shard, num_units=shard.num_rows) for shard in shards],
        worker_args={
            "images_uri": dataset.images.uri,
            "labels_uri": table.uri if table is not None else None,
            "label_space": space,
        },
        compute=compute,
        on_result=lambda _, facts: sums.add(facts),
        label="check",
    )
    incomplete = sum(shard.labels_path is None for shard in shards) if table is not None else 0
    return judge(
        sums, dataset=dataset, labels=labels if table is not None else None, space=space, incomplete=incomplete
    )


def label_table(dataset: Dataset, labels: str) -> Table | None:
    """The label set to scan; None where the dataset has none at all."""
    return dataset.labels(labels) if dataset.label_sets() else None


def pair_shards(images: Table, labels: Table | None) -> list[CheckShard]:
    """Shards of images, each with the file of its labels where that is committed."""
    paths = {file.key: file.path for file in labels.files()} if labels is not None else {}
    return [CheckShard(file.key, file.path, paths.get(file.key), file.num_rows) for file in images.files()]


def judge(sums: _Sums, *, dataset: Dataset, labels: str | None, space: LabelSpace, incomplete: int) -> QualityReport:
    """Errors and warnings from the sums."""
    total = sum(count for index, count in sums.pixels.items() if index < space.num_classes)
    rows = tuple(
        ClassRow(index, name, sums.pixels[index], sums.pixels[index] / max(total, 1), sums.label_images[index])
        for index, name in enumerate(space.names)
    )
    groups = [sorted(set(owners)) for owners in sums.owners.values() if len(owners) > 1]
    between = tuple(tuple(f"{split}: {row_id}" for split, row_id in group) for group in groups if spans_splits(group))
    within = sum(len(group) - 1 for group in groups if not spans_splits(group))
    unseen = tuple(row.name for row in rows if labels is not None and row.pixels == 0)
    report = QualityReport(
        dataset=dataset.root,
        labels=labels,
        splits=dict(sums.rows),
        images_in=sum(sums.rows.values()),
        good=sum(sums.rows.values()) - len(sums.reasons),
        rejected=len(sums.reasons),
        reasons=dict(Counter(reason.partition(" (")[0] for reason in sums.reasons.values()).most_common()),
        rejected_rows=dict(sorted(sums.reasons.items())),
        classes=rows if labels is not None else (),
        void_pixels=sums.pixels[space.void],
        class_images=dict(sums.class_images),
        sizes=dict(sums.sizes.most_common()),
        duplicates_between_splits=between,
        num_duplicates_within_splits=within,
        all_void=tuple(sums.all_void),
        unseen_classes=unseen,
    )
    found = asdict(report) | {"classes": report.classes}
    found["errors"] = tuple(find_errors(report, sums.errors, num_labelled=sums.labelled))
    found["warnings"] = tuple(find_warnings(report, incomplete=incomplete))
    return QualityReport(**found)


def spans_splits(group: Sequence[tuple[str, str]]) -> bool:
    """Whether a group of (split, id) has members in more than one split."""
    return len({split for split, _ in group}) > 1


def find_errors(report: QualityReport, damaged: Sequence[str], *, num_labelled: int) -> list[str]:
    """What makes the dataset unfit, one line each."""
    errors = list(damaged)
    if report.good == 0:
        errors.append("no usable row: every image or label was rejected")
    if report.duplicates_between_splits:
        first = " = ".join(report.duplicates_between_splits[0])
        errors.append(
            f"{len(report.duplicates_between_splits)} images are in more than one split, first {first}: "
            "evaluation would see training images"
        )
    if num_labelled and len(report.all_void) == num_labelled:
        errors.append("every label is void everywhere; void_values may be wrong")
    return errors


def find_warnings(report: QualityReport, *, incomplete: int) -> list[str]:
    """What a person should look at, one line each."""
    warnings = []
    if report.labels is None:
        warnings.append("there is no label set; only images were scanned")
    if incomplete:
        warnings.append(f"label set {report.labels!r} lacks {incomplete} shards of the images: it is not finished")
    if report.rejected:
        warnings.append(f"{report.rejected} of {report.images_in} rows are rejected and will not be trained on")
    if report.all_void:
        warnings.append(f"{len(report.all_void)} labels are void everywhere: {names(report.all_void)}")
    if report.unseen_classes and len(report.unseen_classes) < len(report.classes):
        warnings.append(f"{len(report.unseen_classes)} classes are in no label: {names(report.unseen_classes)}")
    if report.num_duplicates_within_splits:
        warnings.append(f"{report.num_duplicates_within_splits} images repeat another image of their split")
    return warnings + ([hint] if (hint := mask_hint(report)) else [])


def mask_hint(report: QualityReport) -> str | None:
    """A hint where labels look like 0/255 masks: class 0 and void are all they hold, with other classes to be had."""
    seen = [row.index for row in report.classes if row.pixels]
    if seen == [0] and len(report.classes) > 1 and report.void_pixels:
        return "labels hold only class 0 and void: for 0/255 masks ingest with raw_values = [0, 255], void_values = []"
    return None


def names(found: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
