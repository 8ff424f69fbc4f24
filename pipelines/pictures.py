"""Pictures for people: an image, its truth and its prediction as PNG, none larger than a page needs."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.labels import LabelSpace

MAX_SIDE_PX = 640
OVERLAY_SHARE = 0.55  # of the class colour in an overlay


@dataclass(frozen=True)
class Picture:
    """One image, rendered in one or more ways."""

    name: str
    """`fixed-00`, `worst-00` …: kind and number, the stem of its files."""
    id: str
    miou: float | None
    views: dict[str, bytes]
    """image, truth, prediction, overlay -> PNG."""

    def files(self) -> dict[str, bytes]:
        """File name -> PNG."""
        return {f"{self.name}-{view}.png": data for view, data in self.views.items()}

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable form: what is shown, and the file of each view below `pictures/`."""
        named = {view: f"{self.name}-{view}.png" for view in self.views}
        return {"id": self.id, "kind": self.name.partition("-")[0], "miou": self.miou, **named}

    def strip(self) -> NDArray[np.uint8]:
        """The views side by side, RGB (H, n·W, 3)."""
        return np.concatenate([np.asarray(Image.open(io.BytesIO(data))) for data in self.views.values()], axis=1)


def picture_views(
    image: NDArray[np.uint8], *, space: LabelSpace, truth: NDArray[Any] | None = None, prediction: NDArray[Any]
) -> dict[str, bytes]:
    """PNG of an image (H, W, 3), its truth (H, W) where there is one, and its prediction (H, W)."""
    views = {"image": png(image, max_side=MAX_SIDE_PX)}
    if truth is not None:
        views["truth"] = png(space.colorize(truth), max_side=MAX_SIDE_PX, smooth=False)
    return views | {"prediction": png(space.colorize(prediction), max_side=MAX_SIDE_PX, smooth=False)}


def overlay(image: NDArray[np.uint8], label: NDArray[Any], space: LabelSpace) -> NDArray[np.uint8]:
    """The image (H, W, 3) with the class colours laid over it; void stays the image."""
    colors = space.colorize(label).astype(np.float32)
    share = np.where(label == space.void, 0.0, OVERLAY_SHARE)[..., None].astype(np.float32)
    return np.round(image * (1 - share) + colors * share).astype(np.uint8)


def png(pixels: NDArray[np.uint8], *, max_side: int | None = None, smooth: bool = True) -> bytes:
    """PNG of RGB pixels (H, W, 3), shrunk so that no side is longer than `max_side`."""
    picture = Image.fromarray(pixels)
    scale = 1.0 if max_side is None else max_side / max(picture.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BOX if smooth else Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
