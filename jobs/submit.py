"""`segray submit VERB job.toml`: the same job, sent to a running Ray cluster through its job API."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.cli import VERBS, parse_verb
from seg_models.names import did_you_mean

PACKAGES = ("seg_models", "pipelines", "jobs")
MAX_PACKAGE_MB = 50  # Ray ships the folder in one message; code alone is below one megabyte
NOT_FOR_CLUSTERS = ("submit", "models")
PASSED_ON = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
)
USAGE = """usage: segray submit VERB job.toml [--address URL] [--no-follow] [--no-code] [--submission-id ID]
                                         [--key value ...]

Sends the job to the Ray cluster at URL (default RAY_API_SERVER_ADDRESS, else RAY_ADDRESS), follows its log and ends
with its result. The token comes from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH. --no-code: segray is installed there.
--dry-run shows what would be sent."""


@dataclass
class SubmitOptions:
    """What belongs to the submission and not to the job."""

    address: str
    follow: bool = True
    code: bool = True
    submission_id: str = ""
    dry_run: bool = False


def submit_command(arguments: Sequence[str]) -> int:
    """Run the `submit` verb and return the exit code: 0 when the job succeeded (or was sent with --no-follow).

    Raises:
        ValueError: unknown verb, wrong settings, no cluster named or none answering, package too large.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    verb, *rest = arguments
    if verb not in VERBS or verb in NOT_FOR_CLUSTERS:
        known = [name for name in VERBS if name not in NOT_FOR_CLUSTERS]
        raise ValueError(f"cannot submit {verb!r}{did_you_mean(verb, known)}; known: {', '.join(known)}")
    options, rest = _split(rest)
    job, _ = parse_verb(verb, rest)
    options.submission_id = options.submission_id or f"{job.name}-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "package"
        size = build_package(package, job_json=job.model_dump_json(indent=2), code=options.code)
        print(f"submit {verb}: job {options.submission_id} to {options.address}, package {size / 1e6:.2f} MB")
        if options.dry_run:
            print(job.model_dump_json(indent=2))
            return 0
        return _send(verb, package, options)


def _split(arguments: list[str]) -> tuple[SubmitOptions, list[str]]:
    address = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or ""
    options, rest = SubmitOptions(address), []
    waiting = iter(arguments)
    for argument in waiting:
        name, given, inline = argument.partition("=")
        match name:
            case "--address":
                options.address = inline if given else next(waiting, "")
            case "--submission-id":
                options.submission_id = inline if given else next(waiting, "")
            case "--follow":
                options.follow = True
            case "--no-follow":
                options.follow = False
            case "--no-code":
                options.code = False
            case "--dry-run":
                options.dry_run = True
            case _:
                rest.append(argument)
    if not options.address:
        raise ValueError("no cluster named: give --address http://HEAD:8265 or set RAY_API_SERVER_ADDRESS")
    return options, rest


def build_package(folder: Path, *, job_json: str, code: bool) -> int:
    """Lay the working folder of the job out: job.json and, unless the cluster has segray, the three packages.

    Returns:
        Its size in bytes.

    Raises:
        ValueError: it is too large; the message names the largest files.
    """
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(job_json)
    if code:
        root = Path(__file__).resolve().parent.parent
        for package in PACKAGES:
            shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: -path.stat().st_size)
    size = sum(path.stat().st_size for path in files)
    if size > MAX_PACKAGE_MB * 1e6:
        largest = ", ".join(f"{path.relative_to(folder)} {path.stat().st_size / 1e6:.1f} MB" for path in files[:3])
        raise ValueError(f"package of {size / 1e6:.0f} MB is over the limit of {MAX_PACKAGE_MB} MB; largest: {largest}")
    return size


def _send(verb: str, package: Path, options: SubmitOptions) -> int:
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(options.address)
        client.submit_job(
            entrypoint=f"python -m jobs {verb} job.json",
            submission_id=options.submission_id,
            runtime_env={"working_dir": str(package), "env_vars": _environment()},
            metadata={"segray_verb": verb},
        )
    except (ConnectionError, RuntimeError) as error:
        text = str(error).strip().splitlines()[0]
        raise ValueError(f"{options.address}: the cluster does not take the job ({text})") from error
    if not options.follow:
        print(f"sent; follow it with `ray job logs {options.submission_id} --address {options.address} --follow`")
        return 0
    return asyncio.run(_follow(client, options.submission_id))


def _environment() -> dict[str, str]:
    passed = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
    return {**passed, "PYTHONUNBUFFERED": "1"}


async def _follow(client: Any, submission_id: str) -> int:
    async for text in client.tail_job_logs(submission_id):
        sys.stdout.write(text)
        sys.stdout.flush()
    status = client.get_job_status(submission_id)
    print(f"job {submission_id}: {status.value.lower()}")
    return 0 if status.value == "SUCCEEDED" else 1
