"""Auto-labels and PSSL pre-training on CamVid-11, several seeds each.

    python -m benchmarks.label_value --data ../shared/data --output out/label_value

What is finished stands in `docs/label_value.json` and is not measured again with the same settings; what a stopped run
has made is kept in the output folder. Several processes may work in one folder, on other arms (`--only`). Ends by
writing the tables from the JSON into `docs/results.md`; `--tables` does nothing else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.label_value.arms import ARMS, AUTO_LABELS
from benchmarks.label_value.page import section, write_section
from benchmarks.label_value.results import Results
from benchmarks.label_value.settings import Settings
from benchmarks.label_value.stages import Stages
from jobs.cluster import ray_session
from pipelines.shards import ComputeSpec


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing. Returns the exit code: 1 where an arm failed."""
    given = parser().parse_args(arguments)
    results = Results(given.results, lock=given.output / "locks" / "results")
    settings, seeds = settings_of(given), range(given.seeds)
    failures = {} if given.tables else measure(given, settings, results, seeds=seeds)
    write_section(section(results, settings, seeds=seeds), given.page)
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def measure(given: argparse.Namespace, settings: Settings, results: Results, *, seeds: range) -> dict[str, str]:
    """Measure the arms chosen: those of the first table with every seed, then the others; why some failed."""
    stages = Stages(settings, data=given.data, output=given.output, results=results, threads=given.threads)
    first = [arm.name for arm in AUTO_LABELS]
    with ray_session(ComputeSpec()):
        stages.prepare()
        failures = measure_all(stages, arms=[arm for arm in given.only if arm in first], seeds=seeds)
        return failures | measure_all(stages, arms=[arm for arm in given.only if arm not in first], seeds=seeds)


def measure_all(stages: Stages, *, arms: Sequence[str], seeds: range) -> dict[str, str]:
    """All arms with the first seed, then with the next; why some failed."""
    failures: dict[str, str] = {}
    for seed in seeds:
        for arm in arms:
            try:
                stages.measure(ARMS[arm], seed=seed)
            except (ValueError, RuntimeError) as error:
                failures[f"{arm}/{seed}"] = str(error)
                print(f"--- {arm}/{seed} failed: {error}", flush=True)
    return failures


def settings_of(given: argparse.Namespace) -> Settings:
    """The settings, where pairs of flags are tuples."""
    values: dict[str, Any] = {field.name: getattr(given, field.name) for field in fields(Settings)}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Settings(**values)


def parser() -> argparse.ArgumentParser:
    """Flags: places, arms, seeds, and every setting by its name."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--data", type=Path, default=Path("../shared/data"))
    found.add_argument("--output", type=Path, default=Path("out/label_value"))
    found.add_argument("--results", type=Path, default=Path("docs/label_value.json"))
    found.add_argument("--page", type=Path, default=Path("docs/results.md"))
    found.add_argument("--tables", action="store_true", help="write the tables of what is measured, measure nothing")
    found.add_argument("--only", nargs="+", metavar="ARM", default=list(ARMS), choices=list(ARMS))
    found.add_argument("--seeds", type=int, default=3)
    found.add_argument("--threads", type=int, default=1)
    for field in fields(Settings):
        default: Any = field.default
        many = isinstance(default, tuple)
        kind = {"type": type(default[0]), "nargs": len(default)} if many else {"type": type(default)}
        found.add_argument(f"--{field.name.replace('_', '-')}", default=default, **kind)
    return found


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command again to continue")
