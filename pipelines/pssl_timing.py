"""How long one classifier of a PSSL job takes on this machine, alone, planned and built as a job does it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import save_file

from pipelines.pssl_plan import build_ensemble, local_weights, make_plan
from pipelines.pssl_sample import Sample, Scores
from pipelines.pssl_spec import PsslSpec
from pipelines.weights_list import is_usable
from seg_models.ensemble import Ensemble, Query
from seg_models.explain import IntegratedGradientsSpec, SmoothGradSpec, num_copies
from seg_models.numerics import Numerics
from seg_models.smoothing import NoSmoothing
from seg_models.weights.classifiers import ClassifierSpec, build_network, input_size

FIRST_PASSES = 4

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class ClassifierTime:
    """One classifier as it was measured."""

    name: str
    input: tuple[int, int]
    """Height and width of the input it was measured with."""
    passes: int
    """Gradient passes that an image takes; of a Captum method the attributions, each of which takes several."""
    measured_passes: int
    seconds_per_pass: float
    random_weights: bool
    """Its own weights are not on this machine."""

    @property
    def seconds_per_image(self) -> float:
        """All passes of an image."""
        return self.passes * self.seconds_per_pass


def measure(
    classifier: ClassifierSpec, samples: list[Sample], pssl: PsslSpec, *, device: Device, seconds: float
) -> tuple[ClassifierTime, Scores | None]:
    """The time of one classifier, and its map of the first image.

    Args:
        seconds: about how long to measure; fewer passes are run where an image takes longer.
    """
    passes, clock = num_copies(pssl.explainer), _clock(pssl, device)
    with tempfile.TemporaryDirectory() as scratch:
        usable, random = _with_weights(classifier, Path(scratch))
        few = min(passes, FIRST_PASSES)
        alone = _alone(usable, pssl, passes=few, device=device)
        _explain(alone, samples[0])  # kernels are chosen, memory is taken
        took, found = _timed(alone, samples[:1], clock=clock, seconds=0)
        affordable = min(passes, int(few * seconds / 2 / took))  # once unmeasured, once measured
        if affordable >= 2 * few:
            few, alone = affordable, _alone(usable, pssl, passes=affordable, device=device)
            _explain(alone, samples[0])
            took, found = _timed(alone, samples, clock=clock, seconds=seconds / 2)
    shape = input_size(*samples[0].pixels.shape[:2], size=classifier.size, resize=pssl.resize)
    return ClassifierTime(classifier.label, shape, passes, few * alone.batch, took / few, random), found


def _timed(
    alone: Ensemble, samples: list[Sample], *, clock: Callable[[], float], seconds: float
) -> tuple[float, Scores | None]:
    """Seconds of an image, over as many as fit into the time, and the first one's map."""
    start, found = clock(), _explain(alone, samples[0])
    count = 1
    for sample in samples[1:]:
        if clock() - start > seconds:
            break
        _explain(alone, sample)
        count += 1
    return (clock() - start) / (count * alone.batch), found


def _clock(pssl: PsslSpec, device: Device) -> Callable[[], float]:
    """Time of an actor with the device to itself: on CPUs that of the processor, whatever else the machine does."""
    return time.perf_counter if device == "cuda" else lambda: time.process_time() / pssl.threads


def _explain(alone: Ensemble, sample: Sample) -> Scores | None:
    """Scores (H, W) of an image; None where the classifier says nothing. The device has finished then.

    As many copies of the image as a job would explain at once go through together.
    """
    queries = [Query(sample.pixels, sample.target, f"{sample.image_id}/{number}") for number in range(alone.batch)]
    found = [None if one.scores is None else one.scores.cpu().numpy() for one in alone.scores(queries)]
    return found[0]


def _alone(classifier: ClassifierSpec, pssl: PsslSpec, *, passes: int, device: Device) -> Ensemble:
    """An ensemble of one classifier, planned and built as a job does it, with another number of passes.

    Smoothing is no classifier's; probing would take longer than measuring.
    """
    changes = {"explainer": _with_passes(pssl, passes), "smoothing": NoSmoothing()}
    fewer = pssl.model_copy(update=changes | ({"numerics": Numerics()} if pssl.numerics == "probe" else {}))
    plan = make_plan(fewer, (classifier,), images="", device=device)
    return build_ensemble(plan, (classifier,))


def _with_passes(pssl: PsslSpec, passes: int) -> object:
    explainer = pssl.explainer
    if isinstance(explainer, SmoothGradSpec):
        return explainer.model_copy(update={"samples": passes})
    if isinstance(explainer, IntegratedGradientsSpec):
        return explainer.model_copy(update={"steps": passes})
    return explainer


def _with_weights(classifier: ClassifierSpec, scratch: Path) -> tuple[ClassifierSpec, bool]:
    """The classifier with its own weights, or with random ones in a temporary file and True."""
    try:
        (local,) = local_weights((classifier,))
        usable = is_usable(local)
    except ValueError:  # no such object in the store
        usable = False
    if usable:
        return local, False
    path = scratch / "random.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in build_network(classifier).state_dict().items()}, path)
    return classifier.model_copy(update={"weights": str(path), "weights_sha256": None, "match": "name"}), True
