"""A Ray session that is told to end."""

from __future__ import annotations

import subprocess
import sys

SECOND_SIGTERM = """
import ctypes, os, signal, time
from jobs.cluster import sigterm_as_interrupt
try:
    with sigterm_as_interrupt():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            ctypes.CDLL(None).signal(signal.SIGTERM, None)  # to its default, as Ray does when it shuts down
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
except KeyboardInterrupt:
    print("interrupted", signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""


def test_a_second_sigterm_does_not_cut_the_end_short() -> None:
    done = subprocess.run([sys.executable, "-c", SECOND_SIGTERM], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "interrupted True\n"), done.stderr
