"""Results of one photograph under every rule, kept on disk, many photographs at once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.study.maps import Depth, Maps, maps_of, short_hash
from benchmarks.study.photos import SETS, Photo, photos_of
from benchmarks.study.rules import PLAIN_AND_GUIDED, Rule, label_quality, labels_by, quality, rules, scores_by
from seg_models.memory import keep_freed_memory
from seg_models.ranks import deciles

Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """Where data lies, where results go, how deep to look."""

    data: Path
    output: Path
    depth: Depth

    def maps_folder(self, name: str) -> Path:
        """Maps of a set."""
        return self.output / f"maps-{self.depth.key}" / name

    def rows_path(self, name: str, photo: Photo) -> Path:
        """Results of one photograph, in a folder that names maps and rules."""
        everything = [*self.depth.probability, *self.depth.logit, repr(list(rules(self.depth.kinds)))]
        return self.output / f"rows-{self.depth.key}-{short_hash(everything)}" / name / f"{photo.id}.json"


def measure(photo: Photo, *, name: str, study: Study) -> str:
    """Results of one photograph under every rule, kept; returns its id."""
    path = study.rows_path(name, photo)
    if not path.exists():
        torch.set_num_threads(1)
        keep_freed_memory()
        maps = maps_of(photo, data=study.data, folder=study.maps_folder(name), depth=study.depth)
        mask, image = photo.mask(), torch.from_numpy(photo.image().copy()).permute(2, 0, 1)
        found = (row for rule in rules(study.depth.kinds) for row in _rows(rule, maps, image, mask))
        rows = [row | {"set": name, "photo": photo.id} for row in found]
        rows += [*_control(photo, mask), *_low_precision(photo, maps, image)]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))
    return photo.id


def _rows(rule: Rule, maps: Maps, image: torch.Tensor, mask: np.ndarray[Any, Any]) -> list[Row]:
    found = scores_by(rule, maps, image)
    scores = np.zeros(mask.shape) if found is None else found.numpy()
    common: Row = {
        "axis": rule.axis,
        "kind": rule.kind,
        "normalise": rule.normalise,
        "smoothing": rule.smoothing_name,
        "models": len(rule.members),
        "passes": rule.passes,
    }
    rows = [common | quality(scores, mask)]
    if rule.axis == "passes" and rule.smoothing in PLAIN_AND_GUIDED:
        labels = labels_by(scores)
        rows += [
            common | {"axis": "share", "label": key} | label_quality(chosen, mask) for key, chosen in labels.items()
        ]
    return rows


def _low_precision(photo: Photo, maps: Maps, image: torch.Tensor) -> Iterator[Row]:
    """How many pixels of the top decile are the same when classifiers are computed in bfloat16."""
    for smoothing in PLAIN_AND_GUIDED:
        exact, low = (scores_by(Rule(kind, smoothing=smoothing), maps, image) for kind in ("logit.1", "bfloat16"))
        assert exact is not None
        assert low is not None
        same = (deciles(exact.numpy()) == 9) & (deciles(low.numpy()) == 9)
        rule = Rule("bfloat16", smoothing=smoothing)
        common: Row = {"axis": "bfloat16", "kind": rule.kind, "smoothing": rule.smoothing_name, "photo": photo.id}
        yield common | {"same": 10 * float(same.mean())}


def _control(photo: Photo, mask: np.ndarray[Any, Any]) -> list[Row]:
    """What random scores would reach: the mask's share of the image."""
    share = float(mask.mean())
    random = {"precision": share, "iou": share / (2 - share), "ap": share}
    return [{"axis": "control", "kind": "random", "photo": photo.id, "passes": 0, "models": 0} | random]


def run(study: Study, *, limit: int | None, processes: int) -> None:
    """Measure all photographs; each is a task of its own."""
    for name in SETS:
        photos = photos_of(study.data, name, limit=limit)
        start = time.monotonic()
        with get_context("spawn").Pool(processes) as pool:
            for done, found in enumerate(pool.imap(partial(measure, name=name, study=study), photos), 1):
                print(f"{name} {done}/{len(photos)} {found} {time.monotonic() - start:.0f} s", flush=True)


def read_rows(study: Study, *, limit: int | None) -> list[Row]:
    """All results of the photographs of this study."""
    rows: list[Row] = []
    for name in SETS:
        for photo in photos_of(study.data, name, limit=limit):
            rows += [row | {"set": name} for row in json.loads(study.rows_path(name, photo).read_text())]
    return rows
