"""Peak memory from the scores of a network to a counted confusion matrix: 1024×2048 pixels, 19 classes, stride 8.

    python -m benchmarks.eval_path

Scores (19, 128, 256) are there; they are enlarged to the size of the image, arg-maxed and counted against the truth.
Ours is what an evaluation does: a `Predictor` around a network that answers with these scores, then a
`ConfusionMatrix`. The full-tensor way enlarges all scores at once (`F.interpolate`), takes the arg-max of all and
counts it as mmsegmentation does. Memory is what a fresh process with one torch thread grows by at most; `_time` are
CPU-seconds of the same work. Both end in the same counts, but for pixels whose two best scores differ by rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.confusion import NUM_CLASSES, VOID, by_mmseg, label_maps
from benchmarks.measure import Effort, Entries, Measured, command, cpu_pairs
from benchmarks.resident import peak_bytes
from seg_models.metrics import ConfusionMatrix
from seg_models.outputs import SegModel, SemanticOutput, SemanticTarget
from seg_models.predictor import Predictor

STRIDE = 8
Work = Callable[[], tuple[Tensor, Tensor]]


class KnownScores(SegModel):
    """A network that answers with given scores (1, K, h, w), whatever it sees."""

    class_dependent: ClassVar[tuple[str, ...]] = ()

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.num_classes, self.output_stride = scores.shape[1], STRIDE
        self.scores = scores

    def forward(self, images: Tensor) -> SemanticOutput:
        """The scores."""
        return SemanticOutput(self.scores)

    def loss(self, output: SemanticOutput, target: SemanticTarget) -> dict[str, Tensor]:
        """It is not trained."""
        raise ValueError("known scores cannot be trained")


def entries(effort: Effort) -> Entries:
    """Memory and time of one image."""
    rows = 16 if effort.tiny else 128
    ours, peer = prepare_ours(rows), prepare_peer(rows)
    differing = int((ours()[0] - peer()[0]).abs().sum())
    memory = [peak_bytes(f"benchmarks.eval_path:prepare_{kind}", rows) for kind in ("ours", "peer")]
    note = f"the hits of a class differ by {differing} pixels in all"
    return {
        "eval_path_memory": Measured(memory[0], memory[1], unit="bytes"),
        "eval_path_time": cpu_pairs(ours, peer, effort=effort.few, note=note),
    }


def prepare_ours(rows: int) -> Work:
    """Our work, warmed up on a small image."""
    by_tiles(4)()
    return by_tiles(rows)


def prepare_peer(rows: int) -> Work:
    """The peer's work, warmed up on a small image."""
    at_once(4)()
    return at_once(rows)


def by_tiles(rows: int) -> Work:
    """Tiles of the image, one after the other; returns hits and pixels of every class."""
    scores, truth = inputs(rows)
    image = torch.zeros(1, 3, *truth.shape, dtype=torch.uint8)
    predictor = Predictor(KnownScores(scores))

    def work() -> tuple[Tensor, Tensor]:
        counted = ConfusionMatrix(NUM_CLASSES, VOID)
        counted.update(predictor.label_tensors(image)[0], truth)
        matrix = torch.from_numpy(counted.matrix)
        return matrix.diagonal(), matrix.sum(1)

    return work


def at_once(rows: int) -> Work:
    """All pixels of all classes in one tensor; returns hits and pixels of every class."""
    scores, truth = inputs(rows)
    wide = truth.long()

    def work() -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            enlarged = functional.interpolate(scores, size=wide.shape, mode="bilinear", align_corners=False)
            hits, _, _, pixels = by_mmseg(enlarged.argmax(dim=1)[0], wide)
        return hits, pixels

    return work


def inputs(rows: int) -> tuple[Tensor, Tensor]:
    """Scores (1, K, rows, 2 rows) and truth (8 rows, 16 rows) in uint8."""
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(1, NUM_CLASSES, rows, 2 * rows, generator=generator)
    _, truth = label_maps((STRIDE * rows, 2 * STRIDE * rows))
    return scores, torch.from_numpy(truth)


if __name__ == "__main__":
    command(__doc__, entries)
