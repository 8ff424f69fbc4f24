"""Freed memory that a process keeps."""

from __future__ import annotations

import subprocess
import sys

import pytest

PASSES = """
import resource, sys, torch
from seg_models.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for number in range(15):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(10 * 2**20) for _ in range(2)]  # 40 MB each, like activations
    del held
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other C libraries are left alone")
def test_a_pass_takes_the_memory_of_the_one_before_instead_of_fresh_pages() -> None:
    faults = {}
    for name in ("keep", "give_back"):
        ran = subprocess.run([sys.executable, "-c", PASSES, name], capture_output=True, text=True, check=True)
        faults[name] = int(ran.stdout)
    assert faults["keep"] < 20 < faults["give_back"]  # pages may be huge: forty of two megabytes
