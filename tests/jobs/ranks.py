"""Processes that form a gloo group."""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes


def run_ranks(program: Callable[..., Any], world: int, *arguments: Any) -> list[Any]:
    """Run `program(rank, world, *arguments)` in `world` processes that form a gloo group; their results."""
    with tempfile.TemporaryDirectory() as folder:
        settings = (world, folder, program, arguments)
        _start_server()
        start_processes(_member, args=settings, nprocs=world, start_method="forkserver")
        return [pickle.loads(Path(folder, f"result-{rank}").read_bytes()) for rank in range(world)]


@functools.cache
def _start_server() -> None:
    """One process of this test run pays for the imports; the ranks are forked from it."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    multiprocessing.set_forkserver_preload(["tests.jobs.tiny_training"])
    forkserver.ensure_running()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def _member(rank: int, world: int, folder: str, program: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    result = program(rank, world, *arguments)
    Path(folder, f"result-{rank}").write_bytes(pickle.dumps(result))
    dist.destroy_process_group()
