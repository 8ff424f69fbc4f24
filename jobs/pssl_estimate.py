"""`segray pssl --estimate`: what a job will take, measured in seconds, before it is started."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from jobs.load import load_job, parse_flags
from jobs.specs import PsslJob
from pipelines.pssl_estimate import IMAGENET_IMAGES, Need, PsslEstimate, estimate_pssl


def estimate_command(arguments: Sequence[str]) -> int:
    """Measure and print; nothing is written and Ray is not started.

    Raises:
        ValueError: the price is no number, or what is wrong with the job.
    """
    rest = [argument for argument in arguments if argument not in ("--estimate", "--json")]
    path = rest.pop(0) if rest and not rest[0].startswith("-") else None
    flags = parse_flags(rest)
    price = _price(flags.pop("price", None))
    found = estimate(load_job(PsslJob, path=path, flags=flags))
    print(json.dumps(as_table(found, price=price), indent=2) if "--json" in arguments else text(found, price=price))
    return 0


def estimate(job: PsslJob, *, seconds: float = 10.0) -> PsslEstimate:
    """Measure what a job would do on this machine.

    Raises:
        ValueError: what is wrong with the job, or it runs no classifier.
    """
    if job.import_from is not None:
        raise ValueError("import_from runs no classifier, there is nothing to estimate")
    return estimate_pssl(
        job.dataset,
        labels=job.labels,
        pssl=job.pssl,
        ensemble=job.ensemble,
        split=job.split,
        compute=job.compute,
        seconds=seconds,
    )


def as_table(found: PsslEstimate, *, price: float | None) -> dict[str, Any]:
    """The measurement, and what the job and ImageNet take, as JSON holds it."""
    table = asdict(found) | {"compute": found.compute.model_dump(mode="json")}
    sums = {"passes_per_image": found.passes_per_image, "seconds_per_image": found.seconds_per_image}
    job, imagenet = (asdict(found.need(images, price=price)) for images in (found.images_left, IMAGENET_IMAGES))
    return {**table, **sums, "price": price, "job": job, "imagenet": imagenet}


def text(found: PsslEstimate, *, price: float | None) -> str:
    """The same for people."""
    return "\n".join([*_measured(found), "", *_classifiers(found), "", *_needs(found, price)])


def _measured(found: PsslEstimate) -> list[str]:
    random = sum(each.random_weights for each in found.classifiers)
    lines = [f"measured on this machine ({found.device}) with real images of the dataset, in {found.measured_s:.0f} s"]
    if random:
        lines.append(
            f"random weights for {random} of {len(found.classifiers)} classifiers, whose own are not here "
            "(`segray weights` lists them): times hold, bytes of labels are rough"
        )
    return lines


def _classifiers(found: PsslEstimate) -> list[str]:
    width = max(len(each.name) for each in found.classifiers)
    lines = [f"{'classifier':<{width}}  input    passes/image  ms/pass  s/image  weights"]
    lines += [
        f"{each.name:<{width}}  {'x'.join(map(str, each.input)):<7} {each.passes:>13,} "
        f"{each.seconds_per_pass * 1e3:>8.2f} {each.seconds_per_image:>8.3f}  "
        f"{'random' if each.random_weights else 'own'}"
        for each in found.classifiers
    ]
    lines.append(f"{'decode, label, encode':<{width}} {found.other_seconds:>40.3f}")
    return [*lines, f"{'one image':<{width}} {found.passes_per_image:>22,} {found.seconds_per_image:>17.3f}"]


def _needs(found: PsslEstimate, price: float | None) -> list[str]:
    needs = [found.need(images, price=price) for images in (found.images_left, IMAGENET_IMAGES)]
    unit = "GPU-hours" if found.device == "cuda" else "CPU-hours"
    rows: list[tuple[str, Callable[[Need], str]]] = [
        ("images", lambda need: f"{need.images:,}"),
        ("passes", lambda need: f"{need.passes:,}"),
        (unit, lambda need: _hours(need.device_hours)),
        (f"hours with {found.actors} actor{'s' if found.actors > 1 else ''}", lambda need: _hours(need.wall_hours)),
        (f"cost at {price or 0:g} an hour", lambda need: f"{need.cost:,.2f}"),
        ("labels", lambda need: _bytes(need.label_bytes)),
        ("deciles, if kept", lambda need: _bytes(need.decile_bytes)),
    ]
    shown = [(name, figure) for name, figure in rows if price is not None or not name.startswith("cost")]
    table = [f"{name:<24} {figure(needs[0]):>16} {figure(needs[1]):>18}" for name, figure in shown]
    done = found.images_in_scope - found.images_left
    return [f"{'':<24} {'this job':>16} {'ImageNet train':>18}", *table, *_notes(done)]


def _notes(done: int) -> list[str]:
    return [f"{done:,} further images of this job lie in shards that are committed"] if done else []


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 10 else f"{hours:.3g}"


def _bytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.2f} MB"


def _price(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise ValueError(f"--price: found {value!r}; a number is needed: the price of a GPU-hour (CPU-hour on CPUs)")
    return float(value)
