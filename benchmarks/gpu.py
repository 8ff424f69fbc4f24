"""PSSL on a GPU: images/s of fifteen classifiers, share of the card's peak, ratio to Captum, hours for ImageNet.

    python -m benchmarks.gpu --output out/gpu.json

Needs seg_models, torch, timm and numpy, and Captum where there is one; neither Ray nor MLflow, no weights and no data.
Networks have random weights. Every network is tried in float32 and bfloat16, channels first and last, at several chunk
sizes, the best form again as a CUDA graph, and those named by --compile with torch.compile. `--device cpu --smoke` runs
all of it on tiny networks and measures nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu_steps import EAGER, TARGET, Form, Timed, matmul_tflops, median_ms, pass_flop, time_forms
from benchmarks.measure import Measured, Skipped
from benchmarks.networks import fast_form, random_network
from seg_models.ensemble import Ensemble, Query
from seg_models.explain import SmoothGradSpec
from seg_models.ranks import deciles
from seg_models.smoothing import GuidedSpec
from seg_models.weights.classifiers import Classifier
from seg_models.weights.timm15 import timm15_ensemble

IMAGENET_IMAGES = 1_281_167
MAIN_ENTRIES = (
    "images_per_s_paper",
    "peak_share_resnet50",
    "smoothgrad_resnet50_captum",
    "imagenet_hours_paper",
    "imagenet_hours_fast",
)


@dataclass(frozen=True)
class Plan:
    """What to measure, and how large."""

    device: str
    names: tuple[str, ...]
    """timm names of the ensemble."""
    compiled: tuple[str, ...]
    share_of: str
    """The network whose share of the peak and whose ratio to Captum are told."""
    samples: int
    fast_passes: int
    """Passes per image of the cheap preset, over all classifiers."""
    size: int
    chunks: tuple[int, ...]
    matrix: int
    backend: str


@dataclass(frozen=True)
class Figure:
    """A measured value without a peer."""

    value: float
    unit: str
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """The entry of the JSON file."""
        return {"value": self.value, "unit": self.unit, "note": self.note}

    def __str__(self) -> str:
        return f"{self.value:10.4g} {self.unit}  {self.note}".rstrip()


Entry = Figure | Measured | Skipped
Results = Iterator[tuple[str, Entry]]


def smoke_plan(device: str) -> Plan:
    """Everything once, on networks that take milliseconds."""
    names = ("test_resnet", "test_efficientnet")
    return Plan(device, names, names[:1], names[0], 4, 4, 32, (2, 4), 64, backend="eager")


def full_plan(device: str, *, compiled: tuple[str, ...], fast_passes: int) -> Plan:
    """The preset of fifteen at 224 px and n = 50."""
    names = tuple(spec.name.partition(".")[0] for spec in timm15_ensemble())
    chunks = tuple(sorted({max(1, fast_passes // len(names)), 10, 25, 50, 100, 200}))
    return Plan(device, names, compiled, "resnet50", 50, fast_passes, 224, chunks, 8192, backend="inductor")


def measure(plan: Plan) -> Results:
    """All entries as they are found."""
    peak = matmul_tflops(plan.device, side=plan.matrix)
    yield "peak_bf16_matmul", Figure(peak, "TFLOP/s", f"{plan.matrix} square")
    best: dict[str, Timed] = {}
    for name in plan.names:
        network = random_network(name, size=plan.size)
        tried = try_forms(name, network, plan)
        best[name] = min(tried, key=lambda timed: timed.ms_per_pass)
        yield from network_entries(name, network, tried, peak, plan)
    yield from captum_entries(best[plan.share_of], plan)
    yield from ensemble_entries(best, plan)
    yield from imagenet_entries(best, plan)


def try_forms(name: str, network: nn.Module, plan: Plan) -> list[Timed]:
    """The eager forms, then the best of them as a graph and compiled, where asked for and possible."""

    def tried(*forms: Form) -> list[Timed]:
        return time_forms(network, forms, chunks=plan.chunks, size=plan.size, device=plan.device, backend=plan.backend)

    found = tried(*EAGER)
    form = min(found, key=lambda timed: timed.ms_per_pass).form
    if plan.device == "cuda":
        found += tried(dataclasses.replace(form, execution="graph"))
    if name in plan.compiled:
        found += tried(dataclasses.replace(form, execution="compile"))
    return found


def network_entries(name: str, network: nn.Module, tried: list[Timed], peak: float, plan: Plan) -> Results:
    """Best time of a pass in every form, and the share of the peak of the best."""
    for form in dict.fromkeys(timed.form for timed in tried):
        timed = min((one for one in tried if one.form == form), key=lambda one: one.ms_per_pass)
        yield f"pass_{name} {form}", Figure(timed.ms_per_pass, "ms", f"chunk {timed.chunk}")
    best = min(tried, key=lambda timed: timed.ms_per_pass)
    tflops = pass_flop(network, size=plan.size) / (1e9 * best.ms_per_pass)
    note = f"{best.form}, chunk {best.chunk}"
    yield f"peak_share_{name}", Measured(tflops, peak, "TFLOP/s", more_is_better=True, note=note)


def captum_entries(best: Timed, plan: Plan) -> Results:
    """All samples of one image against Captum's tunnel, which runs them in float32 and channels first."""
    network = random_network(plan.share_of, size=plan.size).to(plan.device)
    image = torch.randn(1, 3, plan.size, plan.size, device=plan.device)
    peer, title = captum_peer(network, samples=plan.samples)
    peer_ms = median_ms(partial(peer, image), plan.device)
    note = f"{best.form}, against {title}"
    yield f"smoothgrad_{plan.share_of}_captum", Measured(best.ms_per_pass * plan.samples, peer_ms, "ms", note=note)


def captum_peer(network: nn.Module, *, samples: int) -> tuple[Any, str]:
    """Captum's NoiseTunnel(Saliency), or where Captum is absent what it does: one batch of all samples."""
    if importlib.util.find_spec("captum") is None:
        return lambda image: own_tunnel(network, image, samples=samples), "our own copy of Captum's tunnel"
    import captum.attr

    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(network))
    arguments = {"nt_samples": samples, "stdevs": 0.5, "target": TARGET, "abs": False}
    return lambda image: tunnel.attribute(image.clone().requires_grad_(), **arguments), "Captum"


def own_tunnel(network: nn.Module, image: Tensor, *, samples: int) -> Tensor:
    """Mean gradient (1, 3, h, w) of a logit over noisy copies of an image (1, 3, h, w), all in one batch."""
    copies = image.expand(samples, -1, -1, -1)
    points = torch.normal(copies, torch.full_like(copies, 0.5)).requires_grad_()
    (gradient,) = torch.autograd.grad(network(points)[:, TARGET].sum(), points)
    return gradient.mean(dim=0, keepdim=True)


def ensemble_entries(best: Mapping[str, Timed], plan: Plan) -> Results:
    """Whole images through `Ensemble` and `deciles`, with nothing overlapped: noise, gradients, consensus, ranks."""
    members = [member(name, timed, plan) for name, timed in best.items()]
    pixels = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    each = max(1, plan.fast_passes // len(members))
    for title, spec, smoothing in (
        ("paper", SmoothGradSpec(samples=plan.samples), None),
        ("fast", SmoothGradSpec(samples=each, score="logit"), GuidedSpec()),
    ):
        ensemble = Ensemble(members, explainer=spec, smoothing=smoothing, resize="square", device=plan.device)
        ms = median_ms(partial(label, ensemble, pixels), plan.device) / ensemble.batch
        note = f"{len(members)} classifiers, n={spec.samples}, {ensemble.batch} images at once"
        yield f"images_per_s_{title}", Figure(1e3 / ms, "images/s", note)
        yield f"imagenet_hours_{title}", Figure(IMAGENET_IMAGES * ms / 3.6e6, "h", note)


def member(name: str, timed: Timed, plan: Plan) -> Classifier:
    """A classifier of the ensemble in its best form that `Ensemble` can run."""
    network = random_network(name, size=plan.size)
    return fast_form(network, numerics=timed.form.numerics.model_copy(update={"chunk": timed.chunk}))


def label(ensemble: Ensemble, pixels: np.ndarray[Any, Any]) -> object:
    """Deciles of a batch of images."""
    queries = [Query(pixels, TARGET, str(number)) for number in range(ensemble.batch)]
    return [deciles(found.scores.cpu().numpy()) for found in ensemble.scores(queries) if found.scores is not None]


def imagenet_entries(best: Mapping[str, Timed], plan: Plan) -> Results:
    """What the gradients alone would take, were every chunk full: the goal for batching and overlap."""
    per_round = sum(timed.ms_per_pass for timed in best.values())
    for title, samples in (("paper", float(plan.samples)), ("fast", plan.fast_passes / len(best))):
        ms = per_round * samples
        note = f"{samples * len(best):g} passes an image, gradients alone in full chunks of any images"
        yield f"images_per_s_{title}_gradients", Figure(1e3 / ms, "images/s", note)
        yield f"imagenet_hours_{title}_gradients", Figure(IMAGENET_IMAGES * ms / 3.6e6, "h", note)


def results_of(arguments: argparse.Namespace) -> Results:
    """What the command line asks for; every main entry skipped where there is no GPU to measure."""
    device = arguments.device
    if device == "cuda" and not torch.cuda.is_available():
        return ((name, Skipped("torch sees no CUDA device")) for name in MAIN_ENTRIES)
    torch.backends.cudnn.benchmark = True
    if arguments.smoke:
        return measure(smoke_plan(device))
    return measure(full_plan(device, compiled=tuple(arguments.compile), fast_passes=arguments.fast_passes))


def main() -> None:
    """Print every entry as it comes; write all of them after each, so that a stopped run leaves what it found."""
    arguments = parse()
    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    entries: dict[str, Entry] = {}
    for name, entry in results_of(arguments):
        entries[name] = entry
        print(f"{name:<52} {entry}", flush=True)
        output.write_text(json.dumps({name: entry.as_json() for name, entry in entries.items()}, indent=2) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="out/gpu.json")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where the networks run")
    parser.add_argument("--smoke", action="store_true", help="tiny networks: shows that it runs, measures nothing")
    parser.add_argument("--compile", nargs="*", default=["resnet50"], help="networks to try with torch.compile")
    parser.add_argument("--fast_passes", type=int, default=15, help="passes per image of the cheap preset")
    return parser.parse_args()


if __name__ == "__main__":
    main()
