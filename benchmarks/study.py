"""`make study`: how well the top decile of an ensemble's scores meets human masks, over ensemble size and samples.

    python -m benchmarks.study --data ../shared/data --output out/study

Images are the ECSSD photographs whose machine-given class at least four of five classifiers agree on with a mean
probability above one half. The mask's share of the image is what random pixels would score.
"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from seg_models.ensemble import Ensemble, Member
from seg_models.explain import SmoothGradSpec
from seg_models.ranks import deciles
from seg_models.weights.classifiers import build_classifier
from seg_models.weights.ensembles import named_ensemble

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Photo:
    """An image with a human mask and a class."""

    id: str
    pixels: Array
    mask: Array
    class_index: int


def load_photos(root: Path, *, limit: int) -> list[Photo]:
    """The first `limit` confident photographs of the set."""
    photos = []
    with (root / "index.tsv").open() as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if int(row["classifiers_agreeing_of_5"]) < 4 or float(row["mean_probability"]) <= 0.5:
                continue
            pixels = np.asarray(Image.open(next((root / "images").glob(f"{row['id']}.*"))).convert("RGB"))
            mask = np.asarray(Image.open(next((root / "masks").glob(f"{row['id']}.*"))).convert("1"))
            photos.append(Photo(row["id"], pixels, mask, int(row["class_index"])))
            if len(photos) == limit:
                break
    return photos


def measure(ensemble: Ensemble, photos: list[Photo]) -> dict[str, float]:
    """Mean precision of the top decile and mean IoU of as many top pixels as the mask has."""
    precision, overlap = [], []
    for photo in photos:
        found = ensemble.scores(photo.pixels, target=photo.class_index, image_id=photo.id).scores
        assert found is not None, photo.id
        scores = found.numpy()
        top = deciles(scores) == 9
        precision.append(float(photo.mask[top].mean()))
        chosen = np.zeros(scores.size, bool)
        chosen[np.argsort(-scores, axis=None, kind="stable")[: int(photo.mask.sum())]] = True
        both = np.count_nonzero(chosen & photo.mask.reshape(-1))
        overlap.append(both / np.count_nonzero(chosen | photo.mask.reshape(-1)))
    return {"precision": float(np.mean(precision)), "iou": float(np.mean(overlap))}


def main() -> None:
    """Measure every combination, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--output", default="out/study")
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--models", type=int, nargs="+", default=[1, 3, 14])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = Path(arguments.data)
    photos = load_photos(data / "datasets" / "ecssd-500", limit=arguments.images)
    specs = [
        *named_ensemble("efficientnet_lite"),
        *named_ensemble(f"collected:{data / 'weights/imagenet-classifiers'}"),
    ]
    members = [Member(build_classifier(spec), 4) for spec in specs]
    share = float(np.mean([photo.mask.mean() for photo in photos]))
    print(f"{len(photos)} photographs, the mask's share is {share:.3f}")
    rows = []
    for count in arguments.models:
        for samples in arguments.samples:
            explainer = SmoothGradSpec(samples=samples, score="logit")
            found = measure(Ensemble(members[:count], explainer=explainer, resize="square"), photos)
            rows.append({"models": min(count, len(members)), "samples": samples, **found})
            print(f"M={count:<3} n={samples:<3} precision {found['precision']:.3f}  IoU {found['iou']:.3f}", flush=True)
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    table = {"images": len(photos), "mask_share": share, "resize": "square", "score": "logit", "rows": rows}
    (output / "study.json").write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
