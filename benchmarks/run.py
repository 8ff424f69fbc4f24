"""`make bench`: every benchmark of a CPU, ours against a peer in turns, as a table and as JSON.

    python -m benchmarks.run --output out/bench.json

The JSON is an object from name to `{ours, peer, ratio, unit}`, where `ratio` says how many times better ours is:
peer/ours for times and bytes, ours/peer for rates. What this machine cannot run is `{skipped}` with the reason.
"""

from __future__ import annotations

from benchmarks import (
    codec,
    colors,
    confusion,
    criss_cross,
    data_path,
    deciles,
    eval_path,
    fastfcn,
    hmsa,
    position_attention,
    prediction,
    ray_pssl_loop,
    smoothgrad,
    train_step,
    upsample_ce,
)
from benchmarks.measure import Benchmark, command

SUITE: tuple[Benchmark, ...] = (
    deciles.entries,
    codec.entries,
    colors.entries,
    confusion.entries,
    eval_path.entries,
    smoothgrad.entries,
    fastfcn.entries,
    hmsa.entries,
    criss_cross.entries,
    position_attention.entries,
    prediction.entries,
    upsample_ce.entries,
    ray_pssl_loop.entries,
    data_path.entries,
    train_step.entries,
)

if __name__ == "__main__":
    command(__doc__, *SUITE)
