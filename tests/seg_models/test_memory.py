"""Freed memory that a process keeps."""

from __future__ import annotations

import subprocess
import sys

PASSES = """
import resource, sys, torch
from seg_models.memory import keep_freed_memory
took = sys.argv[1] == "keep" and keep_freed_memory()
for number in range(15):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(10 * 2**20) for _ in range(2)]  # 40 MB each, like activations
    del held
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(int(took), faults)
"""


def faults_of_a_pass(wish: str) -> tuple[bool, int]:
    """Whether the C library took notice of the wish, and the fresh pages of the last of many passes."""
    ran = subprocess.run([sys.executable, "-c", PASSES, wish], capture_output=True, text=True, check=True)
    took, faults = map(int, ran.stdout.split())
    return bool(took), faults


def test_a_pass_takes_the_memory_of_the_one_before_instead_of_fresh_pages() -> None:
    took, kept = faults_of_a_pass("keep")
    _, given_back = faults_of_a_pass("give back")
    assert took == sys.platform.startswith("linux")  # other C libraries are left alone
    assert not took or kept < 20 < given_back  # pages may be huge: forty of two megabytes
