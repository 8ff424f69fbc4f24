"""Real photographs that lie inside the wheels of scikit-image and scikit-learn, each with one ImageNet class."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path, PurePosixPath

# file in an installed package -> index of the ImageNet class nearest to what it shows
PHOTOS = {
    "skimage/data/chelsea.png": 285,  # Egyptian cat
    "skimage/data/coffee.png": 967,  # espresso
    "skimage/data/camera.png": 872,  # tripod
    "skimage/data/rocket.jpg": 657,  # missile
    "sklearn/datasets/images/china.jpg": 698,  # palace: a tower of the Summer Palace
    "sklearn/datasets/images/flower.jpg": 985,  # daisy: a dahlia, of the same family
}
DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


def write_photos(folder: Path) -> None:
    """Copy the photographs into a folder, beside an `index.tsv` that names their classes.

    Raises:
        ValueError: scikit-image or scikit-learn is not installed.
    """
    packages = {package: _folder_of(package) for package in DISTRIBUTIONS}
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file\tclass_index"]
    for place, index in PHOTOS.items():
        package, *inside = PurePosixPath(place).parts
        source = packages[package].joinpath(*inside)
        shutil.copyfile(source, folder / source.name)
        lines.append(f"{source.name}\t{index}")
    (folder / "index.tsv").write_text("\n".join(lines) + "\n")


def _folder_of(package: str) -> Path:
    """Where a package is installed; it is not imported.

    Raises:
        ValueError: it is not installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ValueError(f"the demo's photographs come with {DISTRIBUTIONS[package]}: pip install 'segray[samples]'")
    return Path(found.origin).parent
