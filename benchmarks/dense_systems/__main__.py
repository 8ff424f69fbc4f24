"""Every architecture through the same commands: pre-trained on PSSL labels, fine-tuned on CamVid-11, evaluated.

    python -m benchmarks.dense_systems --data ../shared/data --output out/dense_systems

One small preset of each architecture; only `recipe.model` changes between them. Pseudo-labels are made once. What is
done is kept in the output folder under the settings' name, so that a stopped run continues. A network that fails is
told at the end, with exit code 1, and stops no other. Writes `table.md` and `results.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmarks.dense_systems.settings import Settings
from benchmarks.dense_systems.stages import CommandError, Stages
from benchmarks.dense_systems.systems import small_system
from benchmarks.dense_systems.table import majority, results_markdown
from jobs.cluster import ray_session
from pipelines.shards import ComputeSpec
from pipelines.sources.camvid import CLASSES
from seg_models.spec import ARCHITECTURES


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, then write the table. Returns the exit code: 1 where a network failed."""
    given = parser().parse_args(arguments)
    values: dict[str, Any] = {field.name: getattr(given, field.name) for field in fields(Settings)}
    settings = Settings(**values | {key: tuple(values[key]) for key in ("crop", "pssl_crop")})
    stages = Stages(settings, data=given.data, output=given.output)
    with ray_session(ComputeSpec()):
        stages.prepare()
        rows, failures = measure_all(given.only, stages)
    write(rows, failures, settings, folder=stages.runs)
    return 1 if failures else 0


def measure_all(archs: Sequence[str], stages: Stages) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows of the architectures that went well, and why the others did not."""
    rows: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    for number, arch in enumerate(archs, 1):
        print(f"=== {arch} ({number} of {len(archs)})", flush=True)
        try:
            rows.append(measure(arch, stages))
        except (CommandError, ValueError) as error:
            failures[arch] = str(error)
            print(f"=== {arch} failed: {error}", flush=True)
    return rows, failures


def parser() -> argparse.ArgumentParser:
    """Flags: places, architectures, and every setting by its name."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--data", type=Path, default=Path("../shared/data"))
    found.add_argument("--output", type=Path, default=Path("out/dense_systems"))
    found.add_argument("--only", nargs="+", metavar="ARCH", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    for field in fields(Settings):
        pair = isinstance(field.default, tuple)
        kind: dict[str, Any] = {"type": int, "nargs": 2} if pair else {"type": type(field.default)}
        found.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, **kind)
    return found


def measure(arch: str, stages: Stages) -> dict[str, Any]:
    """The row of an architecture.

    Raises:
        ValueError: it has no small preset, or scores no more than the most frequent class alone.
        CommandError: a command failed.
    """
    start = time.monotonic()
    system = small_system(arch, num_classes=len(CLASSES), crop=stages.settings.crop)
    row = stages.measure(system)
    base = majority(row)
    print(
        f"=== {arch}: {system.preset}, mIoU {row['miou']:.4f} (predicting {base.name} everywhere: {base.miou:.4f}), "
        f"{time.monotonic() - start:.0f} s",
        flush=True,
    )
    if not row["miou"] > base.miou:
        raise ValueError(f"mIoU {row['miou']:.4f} is not above {base.miou:.4f}, that of {base.name} everywhere")
    return row


def write(rows: list[dict[str, Any]], failures: dict[str, str], settings: Settings, *, folder: Path) -> None:
    """Write `results.json` and `table.md`, with what earlier runs measured; print the table, and what failed last."""
    count = f"{len(rows)} of {len(rows) + len(failures)} networks trained"
    place = folder / "results.json"
    earlier = json.loads(place.read_text())["rows"] if place.exists() else []
    now = {row["arch"] for row in rows} | set(failures)
    rows = sorted([*rows, *(row for row in earlier if row["arch"] not in now)], key=lambda row: _order(row["arch"]))
    table = {"settings": asdict(settings), "rows": rows, "failures": failures}
    place.write_text(json.dumps(table, indent=2))
    if rows:
        text = results_markdown(rows, settings)
        (folder / "table.md").write_text(text)
        print(f"\n{text}\n{folder / 'table.md'}")
    for arch, reason in failures.items():
        print(f"failed: {arch}: {reason}", file=sys.stderr)
    print(count, flush=True)


def _order(arch: str) -> int:
    return list(ARCHITECTURES).index(arch)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to continue")
