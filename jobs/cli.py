"""`segray VERB job.toml [--flags]`: the command line. Verbs are imported only when they are used."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.imports import without_collection
from seg_models import __version__
from seg_models.names import did_you_mean

USER_ERROR, JOB_ERROR, INTERRUPTED = 2, 1, 130


@dataclass(frozen=True)
class Verb:
    """One thing a user can run."""

    job: str
    """Settings class in jobs.specs."""
    module: str
    """Module whose `run(job, dry_run=...)` does it."""
    summary: str


VERBS: dict[str, Verb] = {
    "ingest": Verb("IngestJob", "jobs.ingest", "images and labels of a source -> a dataset"),
    "check": Verb("CheckJob", "jobs.check", "scan a dataset for wrong labels, bad files and duplicates"),
    "pssl": Verb("PsslJob", "jobs.pssl", "images with classes -> pseudo-labels from an ensemble of explanations"),
    "train": Verb("TrainJob", "jobs.train", "datasets and a recipe -> a checkpoint"),
    "autolabel": Verb("AutolabelJob", "jobs.autolabel", "a teacher checkpoint and images -> a label set"),
    "evaluate": Verb("EvaluateJob", "jobs.evaluate", "a checkpoint and a labelled split -> metrics and pictures"),
    "compare": Verb("CompareJob", "jobs.compare", "two evaluations of the same images -> what each class gained"),
    "predict": Verb("PredictJob", "jobs.predict", "a checkpoint and any images -> label maps"),
    "export": Verb("ExportJob", "jobs.export", "a checkpoint -> torch.export and ONNX files"),
    "import": Verb("ImportJob", "jobs.import_weights", "a published checkpoint -> a checkpoint of ours"),
    "unpack": Verb("UnpackJob", "jobs.unpack", "a label set -> one PNG, .npz or JPEG XL file per image"),
    "report": Verb("ReportJob", "jobs.report", "write the HTML page of a finished run again"),
    "models": Verb("ModelsJob", "jobs.models", "list the named models with parameters and GMAC"),
    "recipes": Verb("RecipesJob", "jobs.recipes", "list the named recipes with steps, batch and crop"),
    "weights": Verb("WeightsJob", "jobs.weights", "list the files of trained weights, where to get and to put them"),
    "demo": Verb("DemoJob", "jobs.demo", "the whole walk on an embedded sample"),
    "real": Verb("RealJob", "jobs.real", "the whole walk on the real data beside the project"),
}
SUBMIT = "submit"
WITH_JSON = ("models", "recipes", "weights")  # verbs whose --json prints what a program reads
FLAGS = {  # what verbs take beside their settings
    "pssl": " [--estimate [--price PER_DEVICE_HOUR] [--json]]",
    **dict.fromkeys(WITH_JSON, " [--json]"),
}
OWN_PAGE = ("report", "demo", "real")  # verbs that write their page themselves


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `segray` command; exits with 0, 1 (the job failed), 2 (the request was wrong) or 130."""
    code = run(list(sys.argv[1:] if arguments is None else arguments))
    if code == INTERRUPTED:  # whoever loses patience
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gc.freeze()  # else Python collects all modules once more as it ends, which takes two seconds
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code. Errors are lines on standard error, never only a traceback."""
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("segray: interrupted; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED
    except ValueError as error:
        return _complain(error, USER_ERROR)
    except Exception as error:
        return _complain(error, JOB_ERROR)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(f"segray {__version__}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name == SUBMIT:
        from jobs.submit import submit_command

        return submit_command(rest)
    if {"-h", "--help"} & set(rest):
        print(verb_help(name, [argument for argument in rest if argument not in ("-h", "--help")]))
        return 0
    if name == "pssl" and "--estimate" in rest:
        from jobs.pssl_estimate import estimate_command

        return estimate_command(rest)
    job, options = parse_verb(name, rest)
    with without_collection():
        verb = importlib.import_module(VERBS[name].module)
    outcome = verb.run(job, dry_run=options["dry_run"])
    if not options["dry_run"] and getattr(job, "report", False) and name not in OWN_PAGE:
        from jobs.report import report_of

        print(f"report: {report_of(name, job)}")
    return JOB_ERROR if outcome.get("failed") else 0


def parse_verb(name: str, arguments: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """The checked job of a verb and the options that are no settings (`--dry-run`).

    Raises:
        ValueError: unknown verb, or settings that are wrong.
    """
    if name not in VERBS:
        _check_verb(name, [*VERBS, SUBMIT])
    with without_collection():  # torch comes along, which `segray --help` need not wait for
        from jobs.load import load_job, parse_flags

        settings = job_class(name)
    rest = [argument for argument in arguments if argument != "--dry-run"]
    options = {"dry_run": len(rest) < len(arguments)}
    path = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if name in WITH_JSON:
        rest = ["--json-output" if argument == "--json" else argument for argument in rest]
    return load_job(settings, path=path, flags=parse_flags(rest)), options


def job_class(name: str) -> Any:
    """The settings class of a verb."""
    return getattr(importlib.import_module("jobs.specs"), VERBS[name].job)


def _help() -> str:
    lines = ["usage: segray VERB [job.toml] [--key value ...] [--dry-run]", "", "verbs:"]
    lines += [f"  {name:<10} {verb.summary}" for name, verb in VERBS.items()]
    lines += [f"  {SUBMIT:<10} send a job to a running Ray cluster", ""]
    lines += ["`segray VERB --help` lists the settings of a verb; every key of the job file is also a flag."]
    return "\n".join(lines)


def verb_help(name: str, arguments: Sequence[str] = ()) -> str:
    """Help text of a verb, generated from its settings; with a job file, from the job in it.

    Raises:
        ValueError: unknown verb, or a job file that is wrong.
    """
    _check_verb(name, VERBS)
    from jobs.help import settings_help

    usage = f"usage: segray {name} [job.toml] [--key value ...] [--dry-run]{FLAGS.get(name, '')}\n"
    usage += f"\n{VERBS[name].summary}\n"
    job = parse_verb(name, arguments)[0] if arguments else None
    return f"{usage}\n{settings_help(job_class(name), job=job)}"


def _check_verb(name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise ValueError(f"unknown verb {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")


def _complain(error: Exception, code: int) -> int:
    if os.environ.get("SEGRAY_TRACEBACK") == "1":
        traceback.print_exception(error)
    cause = getattr(error, "cause", None)  # Ray's error of a remote call holds the real one, and a long text
    shown = cause if isinstance(cause, Exception) else error
    kind = "" if code == USER_ERROR else f"{type(shown).__name__}: "
    for line in (str(shown).strip() or type(shown).__name__).splitlines():
        print(f"segray: error: {kind}{line}", file=sys.stderr)
        kind = ""
    if code == JOB_ERROR and os.environ.get("SEGRAY_TRACEBACK") != "1":
        print("segray: set SEGRAY_TRACEBACK=1 to see where this happened", file=sys.stderr)
    return code
