"""`segray submit VERB job.toml`: the same job, sent to a running Ray cluster through its job API."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.cli import VERBS, parse_verb
from jobs.places import absolute, absolute_database
from seg_models.names import did_you_mean

PACKAGES = ("seg_models", "pipelines", "jobs")
MAX_PACKAGE_MB = 50  # Ray ships the folder in one message; code alone is below two megabytes
POLL_S = 1.0
GIVE_UP_S = 600.0  # a head that is started anew takes minutes
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
NOT_FOR_CLUSTERS = ("submit", "models", "recipes", "weights")
PASSED_ON = ("AWS_", "MLFLOW_")  # beginnings of names
STAYS_HERE = re.compile(
    r"^AWS_(CONTAINER|EC2_METADATA|EXECUTION|LAMBDA|ROLE)_|_(BUNDLE|DIR|DIRECTORY|FILE|HOME|PAGER|PATH|PROFILE)$"
)
"""What names a file, a profile or an identity of this machine."""
DATABASES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
USAGE = """usage: segray submit VERB job.toml [--address URL] [--no-follow] [--no-code] [--python PATH]
                                         [--submission-id ID] [--include PATH] [--key value ...]

Sends the job to the Ray cluster at URL (default RAY_API_SERVER_ADDRESS, else RAY_ADDRESS), follows its log and ends
with its exit code. The token comes from RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. Relative places start
at the folder where submit is called. Sent again while it runs, the running job is followed; after its end it starts
once more and continues what it left.
  --no-code   segray is installed on the cluster
  --include   a package or module of your own that the job imports, such as an architecture; may be given again
  --python    the Python on the head node that has segray's dependencies (default: the first on its PATH)
  --dry-run   show what would be sent"""


@dataclass
class SubmitOptions:
    """What belongs to the submission and not to the job."""

    address: str
    follow: bool = True
    code: bool = True
    python: str = "python"
    submission_id: str = ""
    own_id: bool = False
    """The user chose the id; Ray refuses one that was used before."""
    include: tuple[Path, ...] = ()
    """Packages and modules of the user's own."""
    dry_run: bool = False


def submit_command(arguments: Sequence[str]) -> int:
    """Run the `submit` verb and return the exit code of the job; 0 once it is sent with --no-follow.

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
    job = absolute(parse_verb(verb, rest)[0])
    text = job.model_dump_json(indent=2)
    options.submission_id = options.submission_id or submission_id(verb, job.name, text)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "package"
        size = build_package(package, job_json=text, code=options.code, include=options.include)
        print(
            f"submit {verb}: job {options.submission_id} to {options.address}, package {size / 1e6:.2f} MB", flush=True
        )
        if options.dry_run:
            _show_plan(verb, job, options.address)
            return 0
        return _send(verb, package, options)


def _show_plan(verb: str, job: Any, address: str) -> None:
    """The plan of the job; where its places cannot be read from here, the settings alone."""
    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = address  # whether it fits is for the cluster to say, not for this machine
    try:
        importlib.import_module(VERBS[verb].module).run(job, dry_run=True)
    except (OSError, ValueError) as error:
        print(job.model_dump_json(indent=2))
        print(f"segray: no plan from here: {error}", file=sys.stderr)
    finally:
        os.environ.pop("RAY_ADDRESS")
        os.environ.update({} if before is None else {"RAY_ADDRESS": before})


def submission_id(verb: str, name: str, job_json: str) -> str:
    """The same job has the same id, so that sending it twice does not run it twice at once."""
    return f"segray-{verb}-{name}-{hashlib.sha256(job_json.encode()).hexdigest()[:8]}"


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
                options.submission_id, options.own_id = inline if given else next(waiting, ""), True
            case "--python":
                options.python = inline if given else next(waiting, "")
            case "--include":
                options.include += (_own_code(inline if given else next(waiting, ""), options.include),)
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


def _own_code(text: str, others: Sequence[Path] = ()) -> Path:
    """The package or module that `--include` names.

    Raises:
        ValueError: there is none, or its name is that of one of ours or of one of the others.
    """
    path = Path(text)
    if not text or not (path.is_dir() or (path.is_file() and path.suffix == ".py")):
        above = path.parent if path.parent.is_dir() else Path()
        hint = did_you_mean(path.name, [entry.name for entry in above.iterdir()])
        raise ValueError(f"--include: {text!r} is neither a folder nor a .py file{hint}")
    path = Path(os.path.abspath(path))  # a link keeps its own name, which is the one that is imported
    name = path.stem if path.is_file() else path.name
    if name in PACKAGES:
        raise ValueError(f"--include: {text!r} would take the place of segray's own {name!r}; give it another name")
    if same := [str(other) for other in others if other.name == path.name]:
        raise ValueError(f"--include: {text!r} would take the place of {same[0]!r}; give one of them another name")
    return path


def build_package(folder: Path, *, job_json: str, code: bool, include: Sequence[Path] = ()) -> int:
    """Lay the working folder of the job out: job.json, the user's own code and, unless the cluster has segray, ours.

    Returns:
        Its size in bytes.

    Raises:
        ValueError: it is too large; the message names the largest files.
    """
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(job_json)
    root = Path(__file__).resolve().parent.parent
    ours = [root / package for package in PACKAGES] if code else []
    files = {path.relative_to(source.parent): path for source in (*ours, *include) for path in _code_of(source)}
    sizes = {place: path.stat().st_size for place, path in files.items()}
    size = len(job_json.encode()) + sum(sizes.values())
    if size > MAX_PACKAGE_MB * 1e6:  # seen before anything is copied: a folder may hold data sets
        three = sorted(sizes, key=lambda place: -sizes[place])[:3]
        largest = ", ".join(f"{place} {sizes[place] / 1e6:.1f} MB" for place in three)
        raise ValueError(f"package of {size / 1e6:.0f} MB is over the limit of {MAX_PACKAGE_MB} MB; largest: {largest}")
    for place, path in files.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, folder / place)
    return size


def _code_of(source: Path) -> Iterator[Path]:
    """The files of a package or module, without hidden and compiled ones."""
    if source.is_file():
        yield source
        return
    for above, inside, names in os.walk(source, followlinks=True):
        inside[:] = [name for name in inside if not name.startswith(".") and name != "__pycache__"]
        yield from (Path(above, name) for name in names if not name.startswith(".") and not name.endswith(".pyc"))


def _send(verb: str, package: Path, options: SubmitOptions) -> int:
    client = _connect(options.address)
    chosen, runs = options.submission_id, False
    if not options.own_id:
        chosen, runs = choose_id(chosen, {job.submission_id: job.status.value for job in client.list_jobs()})
    if runs:
        print(f"job {chosen} runs already")
    else:
        with _refusals(options.address):
            client.submit_job(
                entrypoint=f"{options.python} -m jobs {verb} job.json",
                submission_id=chosen,
                runtime_env={"working_dir": str(package), "env_vars": _environment()},
                metadata={"segray_verb": verb},
            )
        print(f"sent as {chosen}", flush=True)
    if not options.follow:
        print(f"follow it with `ray job logs {chosen} --address {options.address} --follow`")
        return 0
    try:
        return follow(client, chosen)
    except KeyboardInterrupt:
        print(f"\nthe job runs on; `ray job stop {chosen} --address {options.address}` ends it", file=sys.stderr)
        raise


def _connect(address: str) -> Any:
    """A client whose cluster answers and takes our token.

    Raises:
        ValueError: it does not.
    """
    from ray.job_submission import JobSubmissionClient

    from jobs.cluster import use_token

    use_token(from_home=True)
    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with _refusals(address):
        client = JobSubmissionClient(address)
        client.list_jobs()
    return client


@contextlib.contextmanager
def _refusals(address: str) -> Iterator[None]:
    """Turn the errors of Ray's client into one line that says what to do."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise ValueError(
            f"{address}: the cluster does not let us in ({_first_line(error)}); set RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH to its token"
        ) from error
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(f"{address}: the cluster does not take the job ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def choose_id(wanted: str, known: Mapping[str, str]) -> tuple[str, bool]:
    """The id to use and whether a job of that id runs already; ended ones get the next number, `-2`, `-3` …"""
    chosen, number = wanted, 1
    while chosen in known and known[chosen] in ENDED:
        number += 1
        chosen = f"{wanted}-{number}"
    return chosen, chosen in known


def _environment() -> dict[str, str]:
    from jobs.cluster import THREADS

    policy = {key: os.environ.get(key, default) for key, default in THREADS.items()}
    return {**policy, **passed_on(os.environ), "PYTHONUNBUFFERED": "1"}


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of object stores and of tracking that mean the same on the cluster as here."""
    passed = {key: value for key, value in environment.items() if key.startswith(PASSED_ON)}
    return {
        key: absolute_database(value) if key in DATABASES else value
        for key, value in passed.items()
        if not STAYS_HERE.search(key)
    }


def follow(client: Any, chosen: str) -> int:
    """Print the job's log until it ends; a lost connection is taken up again where it broke.

    Returns:
        The job's own exit code; 1 where it was stopped or lost and has none.

    Raises:
        RuntimeError: the cluster has not answered for GIVE_UP_S seconds.
    """
    from aiohttp import ClientError

    log = _Log(client, chosen)
    lost_since: float | None = None
    while True:
        try:
            asyncio.run(log.show())
        except (ClientError, OSError, RuntimeError) as error:
            if lost_since is None:
                print(f"log of {chosen} lost ({error}); trying again", file=sys.stderr)
        try:
            info = client.get_job_info(chosen)
        except (OSError, RuntimeError) as error:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > GIVE_UP_S:
                raise RuntimeError(
                    f"no answer about job {chosen} for {GIVE_UP_S:g} s ({_first_line(error)}); it may run on, send the "
                    "same job again to follow it"
                ) from error
        else:
            lost_since = None
            if info.status.value in ENDED:
                print(f"job {chosen}: {info.status.value.lower()}")
                if info.status.value != "SUCCEEDED" and not log.shown:
                    print(f"segray: error: {info.message}", file=sys.stderr)  # it did not come as far as a log
                return exit_code(info.status.value, info.driver_exit_code)
        time.sleep(POLL_S)


def exit_code(status: str, code: int | None) -> int:
    """What `submit` ends with: the code of the job, as a shell says it where a signal ended the job."""
    if status == "SUCCEEDED":
        return 0
    if not code:
        return 1
    return code if code > 0 else 128 - code


class _Log:
    """The log of a job; Ray sends it from its start each time, what was shown is not shown again."""

    def __init__(self, client: Any, chosen: str) -> None:
        self.client, self.chosen = client, chosen
        self.shown = 0
        """Characters."""

    async def show(self) -> None:
        """Print what is new until the connection or the job ends."""
        seen = 0
        async for text in self.client.tail_job_logs(self.chosen):
            sys.stdout.write(text[max(0, self.shown - seen) :])
            sys.stdout.flush()
            seen += len(text)
            self.shown = max(self.shown, seen)
