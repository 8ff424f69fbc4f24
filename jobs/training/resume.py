"""What a run goes on from: the newest checkpoint that verifies, if it is one of the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from jobs.training.checkpoints import (
    DamagedCheckpointError,
    TrainState,
    checkpoint_steps,
    checkpoint_uri,
    load_checkpoint,
    verify_checkpoint,
)
from jobs.training.plan import TrainPlan, Worker
from jobs.training.reductions import broadcast_object
from pipelines.tables import differing_keys

T = TypeVar("T")


def find_state(plan: TrainPlan, worker: Worker, *, say: Callable[[str], None]) -> TrainState | None:
    """The state to go on from; rank 0 chooses, so that all go on from the same step.

    Raises:
        ValueError: the run was started with other settings.
    """
    mine = newest_state(plan.run, log=say) if worker.rank == 0 else None
    step = broadcast_object(None if mine is None else mine.step)
    if step is None:
        return None
    uri = checkpoint_uri(plan.run, step)
    state = load_checkpoint(uri) if mine is None else mine
    check_identity(plan.run, ours=plan.identity, theirs=state.facts["identity"])
    saved = state.facts["world"]
    resized = "" if saved == worker.world else f", with {worker.world} workers instead of {saved}"
    say(f"going on from step {state.step} ({uri}){resized}")
    return state


def newest_state(run: str, *, log: Callable[[str], None]) -> TrainState | None:
    """The newest checkpoint that verifies; `log` is told why newer ones do not count."""
    return next(_verified(run, load_checkpoint, log=log), None)


def newest_facts(run: str, *, log: Callable[[str], None]) -> dict[str, Any] | None:
    """What the newest checkpoint that verifies says of itself."""
    return next(_verified(run, verify_checkpoint, log=log), None)


def _verified(run: str, read: Callable[[str], T], *, log: Callable[[str], None]) -> Iterator[T]:
    """What `read` makes of the checkpoints that verify, newest first."""
    for step in reversed(checkpoint_steps(run)):
        try:
            yield read(checkpoint_uri(run, step))
        except DamagedCheckpointError as error:
            log(f"checkpoint left out: {error}")


def check_same_run(run: str, *, identity: Mapping[str, Any]) -> None:
    """Refuse a run whose newest checkpoint was made with other settings; nothing happens where there is none.

    Raises:
        ValueError: names the keys that differ.
    """
    facts = newest_facts(run, log=lambda _: None)
    if facts is not None:
        check_identity(run, ours=identity, theirs=facts["identity"])


def check_identity(run: str, *, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was started with other settings or other data.

    Raises:
        ValueError: names the keys that differ.
    """
    differing = differing_keys(dict(ours), dict(theirs))
    if differing:
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise ValueError(
            f"{run}: this run was started with other settings ({'; '.join(differing[:5])}{more}); "
            "give the job another name, or the same settings to continue it"
        )
