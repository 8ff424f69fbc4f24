"""Pictures of a page, embedded: examples of a label set, evaluated images, arms side by side."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.report_page import escape, legend, number
from pipelines import storage
from pipelines.codecs import decode_label
from pipelines.confidence import decode_confidence
from pipelines.images import decode_image
from pipelines.labels import LabelSpace
from pipelines.pictures import overlay
from pipelines.tables import Dataset, Table

MAX_SIDE_PX = 480
SMALL_PX = 160  # smaller pictures are enlarged without smoothing
JPEG_QUALITY = 88
MAX_KEYS = 40
SMOOTH = ("image", "label over the image")  # views with the colours of a photograph
LOW_COLOR, HIGH_COLOR = (68, 30, 95), (250, 220, 90)  # of a confidence map

Views = Mapping[str, NDArray[np.uint8]]
"""RGB pictures (H, W, 3) of one image, by what they show."""


def embed(pixels: NDArray[np.uint8], alt: str, *, smooth: bool = True) -> str:
    """An `img` with RGB pixels (H, W, 3): PNG for label maps and small pictures, JPEG for photographs."""
    picture = Image.fromarray(pixels)
    scale = MAX_SIDE_PX / max(picture.size)
    small = max(picture.size) <= SMALL_PX
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BOX if smooth else Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    if smooth and not small:
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    else:
        picture.save(buffer, "PNG", optimize=True)
    kind = "jpeg" if smooth and not small else "png"
    width, height = picture.size
    look = ' class="px"' if small else ""
    return (
        f'<img{look} alt="{escape(alt)}" width="{width}" height="{height}" style="height:auto" '
        f'src="data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}">'
    )


def shot(views: Views, caption: str) -> str:
    """Several views of one image side by side, with a caption."""
    pictures = {name: embed(pixels, f"{name}: {caption}", smooth=name in SMOOTH) for name, pixels in views.items()}
    cells = "".join(f"<div>{picture}<span>{escape(name)}</span></div>" for name, picture in pictures.items())
    return f'<figure><div class="views">{cells}</div><figcaption>{escape(caption)}</figcaption></figure>'


def shots(figures: Sequence[str], *, wide: bool = False) -> str:
    """Pictures in a grid that fits the screen."""
    return f'<div class="shots{" wide" if wide else ""}">{"".join(figures)}</div>' if figures else ""


def class_key(space: LabelSpace, seen: set[int] | None = None) -> str:
    """The colours of the classes, of those seen only where that is given."""
    wanted = range(space.num_classes) if seen is None else sorted(index for index in seen if index < space.num_classes)
    shown = list(wanted)[:MAX_KEYS]
    return legend({space.names[index]: space.colors[index] for index in shown})


def label_examples(dataset: str, *, labels: str | None, split: str | None = None, count: int = 8) -> str:
    """Images of a dataset with a label set: the first usable rows of its first shards, in the order they were dealt.

    Args:
        labels: name of the label set; without one only the images are shown.
    """
    data = Dataset.open(dataset)
    table = data.labels(labels) if labels is not None else None
    space = table.label_space if table is not None else data.info.label_space
    figures: list[str] = []
    seen: set[int] = set()
    for row in _rows(data, table, split=split):
        views = row_views(row, space)
        if "index" in row:
            seen |= {int(value) for value in np.unique(row["index"])}
        figures.append(shot(views, _caption(row, space)))
        if len(figures) == count:
            break
    key = class_key(space, seen) if seen else ""
    return key + shots(figures, wide=table is not None) if figures else ""


def _rows(data: Dataset, labels: Table | None, *, split: str | None) -> Iterator[dict[str, Any]]:
    """Rows with an image and, where a label set is given, a label, decoded."""
    images = data.images
    sure = _confidence_of(data, labels) if labels is not None else None
    for file in (labels or images).files(split=split):
        rows = images.read(file.key, columns=("id", "image", "class")).to_pylist()
        if labels is not None:
            found = labels.read(file.key, columns=("id", "label", "confidence")).to_pylist()
            rows = [{**row, **label} for row, label in zip(rows, found, strict=True)]
        if sure is not None:
            found = sure.read(file.key, columns=("confidence",)).to_pylist()
            rows = [{**row, **teacher} for row, teacher in zip(rows, found, strict=True)]
        for row in rows:
            if row["image"] is None or (labels is not None and row["label"] is None):
                continue
            row["pixels"] = decode_image(row["image"])
            if labels is not None:
                row["index"] = decode_label(row["label"])
            yield row


def _confidence_of(data: Dataset, labels: Table) -> Table | None:
    """The teacher's own label set that another one was derived from: it has the confidence."""
    name = (labels.info.get("plan") or {}).get("source")
    return data.labels(name) if name in data.label_sets() else None


def row_views(row: Mapping[str, Any], space: LabelSpace) -> dict[str, NDArray[np.uint8]]:
    """The image of a row, its label and the confidence where there is one.

    Where most pixels are background, the label is laid over the image, which shows more.
    """
    pixels: NDArray[np.uint8] = row["pixels"]
    views = {"image": pixels}
    if "index" in row and space.background is not None:
        views["label over the image"] = overlay(pixels, row["index"], space)
    elif "index" in row:
        views["label"] = space.colorize(row["index"])
    if row.get("confidence") is not None:
        views["confidence"] = confidence_picture(decode_confidence(row["confidence"]))
    return views


def confidence_picture(confidence: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A confidence map (H, W) in 0..1 from dark (0) to bright (1)."""
    low, high = np.array(LOW_COLOR, np.float32), np.array(HIGH_COLOR, np.float32)
    return np.round(low + (high - low) * confidence[..., None]).astype(np.uint8)


def _caption(row: Mapping[str, Any], space: LabelSpace) -> str:
    name = space.names[row["class"]] if row.get("class") is not None else ""
    return f"{row['id']} · {name}" if name else str(row["id"])


def evaluated(folder: str, entries: Sequence[Mapping[str, Any]]) -> str:
    """Stored pictures of a run: image, truth where there is one, prediction."""
    figures = []
    for entry in entries:
        views = {view: stored(folder, entry[view]) for view in ("image", "truth", "prediction") if entry.get(view)}
        score = "" if entry.get("miou") is None else f" · IoU {number(float(entry['miou']))}"
        figures.append(shot(views, f"{entry['id']}{score}"))
    return shots(figures, wide=True)


def stored(folder: str, name: str) -> NDArray[np.uint8]:
    """RGB pixels of a picture that a run left in its folder."""
    with Image.open(io.BytesIO(storage.read_bytes(storage.join(folder, "pictures", name)))) as picture:
        return np.asarray(picture.convert("RGB"))


def compared(folders: Mapping[str, str], entries: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The same images as every arm sees them, one row an image.

    Args:
        folders: folder of the evaluation by the arm's title.
        entries: pictures by the arm's title, the same ids in the same order.
    """
    first = next(iter(folders))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("image", "truth", *folders))
    rows = []
    for place, entry in enumerate(entries[first]):
        name = str(entry["id"])
        cells = [
            f"<td>{embed(stored(folders[first], entry[view]), f'{view}: {name}', smooth=view in SMOOTH)}</td>"
            for view in ("image", "truth")
        ]
        for title, folder in folders.items():
            other = entries[title][place]
            assert other["id"] == name
            picture = embed(stored(folder, other["prediction"]), f"{title}: {name}", smooth=False)
            score = "" if other["miou"] is None else f"<span>IoU {number(float(other['miou']))}</span>"
            cells.append(f"<td>{picture}{score}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    if not rows:
        return ""
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="scroll"><table class="compare">{body}</table></div>'
