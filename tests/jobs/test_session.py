"""The Ray of a job: the token that this process sends is the one that its cluster knows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ray

# In a process of its own: the token that Ray holds is one for the whole process.
PROGRAM = """
import os, ray
from ray._raylet import AuthenticationTokenLoader
from jobs import cluster
from pipelines.shards import ComputeSpec

token = AuthenticationTokenLoader.instance().get_raw_token
cluster.use_token(from_home=True)
assert token() == "0123456789abcdef" * 2, token()
ray.init = lambda **_: print(token() == os.environ["RAY_AUTH_TOKEN"] != "0123456789abcdef" * 2)
with cluster.ray_session(ComputeSpec()):
    pass
"""


def test_a_token_of_the_home_folder_is_not_sent_to_a_local_ray_of_our_own(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0123456789abcdef" * 2)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


def test_workers_of_a_local_ray_wait_without_spinning(ray_local: None) -> None:
    assert ray.get(ray.remote(os.getenv).remote("OMP_WAIT_POLICY")) == os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
