"""`make study`: how labels made from explanations meet human masks, and what a gradient pass buys.

    python -m benchmarks.study --data ../shared/data --output out/study

Photographs are the ECSSD ones whose machine-given class is confident, and horses. Maps are kept in `OUTPUT/maps-*` and
results in `OUTPUT/rows-*`, whose names change with the settings, so a stopped run continues; `--photos` and `--samples`
make it shorter. Inputs are square.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.study.maps import Depth
from benchmarks.study.measure import Study, read_rows, run
from benchmarks.study.tables import write_tables


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, then write tables, plot and `study.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path("out/study"))
    parser.add_argument("--photos", type=int, help="of each set; default all")
    parser.add_argument("--samples", type=int, default=50, help="largest number of samples of the published score")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    given = parser.parse_args(arguments)
    counts = tuple(count for count in Depth().probability if count <= given.samples)
    depth = Depth(probability=counts, logit=tuple(count for count in Depth().logit if count <= given.samples))
    study = Study(given.data, given.output, depth)
    run(study, limit=given.photos, processes=given.processes)
    summary = write_tables(read_rows(study, limit=given.photos), given.output)
    (given.output / "study.json").write_text(json.dumps({"depth": asdict(depth), **summary}, indent=2))


if __name__ == "__main__":
    main()
