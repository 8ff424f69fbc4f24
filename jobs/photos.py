"""Real photographs that lie inside the wheels of scikit-image, with the ImageNet class that classifiers agree on."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

# file in skimage/data -> ImageNet class index
PHOTOS = {"chelsea.png": 285, "coffee.png": 967, "camera.png": 872, "rocket.jpg": 657}


def write_photos(folder: Path) -> None:
    """Copy the photographs into a folder, beside an `index.tsv` that names their classes.

    Raises:
        ValueError: scikit-image is not installed.
    """
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        raise ValueError("the demo's photographs come with scikit-image: pip install 'segray[samples]'")
    folder.mkdir(parents=True, exist_ok=True)
    data = Path(found.origin).parent / "data"
    for name in PHOTOS:
        shutil.copyfile(data / name, folder / name)
    lines = [f"{name}\t{index}" for name, index in PHOTOS.items()]
    (folder / "index.tsv").write_text("\n".join(["file\tclass_index", *lines]) + "\n")
