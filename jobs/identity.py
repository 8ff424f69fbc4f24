"""Who a run is: what makes two jobs the same run, and the tags by which people find it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.specs import Job


# Settings that say where or how closely a job runs, not what it computes: with other values it is still the same run.
_WHERE = {
    *("compute", "tracking", "report", "workers", "accumulate", "device", "precision", "threads"),
    *("checkpoint_every", "keep_checkpoints", "log_every", "max_failures", "save_timeout_s"),
    *("validate_every", "validate_metric", "validate_timeout_s", "keep_best", "patience"),
}


def identity_of(job: Job, verb: str) -> str:
    """SHA-256 of what the job computes; a job that is started again continues the run of equal identity."""
    text = json.dumps({"verb": verb, **job.model_dump(mode="json", exclude=_WHERE)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def tags_of(job: Job, verb: str) -> dict[str, str]:
    """Verb, architecture, git commit and Ray submission id; empty where there is none."""
    recipe = getattr(job, "recipe", None)
    return {
        "verb": verb,
        "architecture": recipe.model.arch if recipe is not None else "",
        "mlflow.source.name": f"segray {verb}",
        "mlflow.source.git.commit": _git_commit(),
        "ray.submission_id": _submission_id(),
    }


def _git_commit() -> str:
    """The commit of the tree this file lies in, or nothing (an installed package, no git)."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _submission_id() -> str:
    """The id under which Ray's job API started this driver, or nothing."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return str(config.get("metadata", {}).get("job_submission_id", ""))
