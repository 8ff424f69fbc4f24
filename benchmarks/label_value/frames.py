"""CamVid-11 with its training frames in two splits: an eighth that counts as labelled, and the rest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

SHARE = 8
SPLITS = ("eighth", "rest", "val", "test")


def copy_frames(source: Path, folder: Path) -> dict[str, Any]:
    """Copy frames and labels of `<split>/images` and `<split>/labels`, the training frames into two splits.

    Every eighth training frame, in the order of the names, is in `eighth`: frames are taken from films, a second apart,
    so that it has some of each film.

    Returns:
        Frames by split.
    """
    frames = {split: sorted((source / split / "images").iterdir()) for split in ("train", "val", "test")}
    eighth = frames["train"][::SHARE]
    parts = {
        "eighth": eighth,
        "rest": [frame for frame in frames["train"] if frame not in eighth],
        "val": frames["val"],
        "test": frames["test"],
    }
    for split, chosen in parts.items():
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        for frame in chosen:
            shutil.copyfile(frame, folder / split / "images" / frame.name)
            label = frame.parent.parent / "labels" / f"{frame.stem}.png"
            shutil.copyfile(label, folder / split / "labels" / label.name)
    return {split: len(chosen) for split, chosen in parts.items()}
