"""`make bench`: ours against the peer, interleaved in one process, CPU-seconds; writes a table as JSON.

    python -m benchmarks.run --output out/bench.json

Every entry is `{ours, peer, ratio, unit}`; `ratio` says how many times better ours is (peer/ours for times and bytes).
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import captum.attr
import numpy as np
import timm
import torch
from PIL import Image

from pipelines.labels import decode_label, encode_label
from seg_models.deciles import deciles
from seg_models.explain import SmoothGradSpec, explain, unit_noise
from seg_models.metrics import ConfusionMatrix

PAIRS = 5
Entry = dict[str, Any]


def pair(ours: Callable[[], object], peer: Callable[[], object], *, repeat: int = 1) -> Entry:
    """Median CPU-seconds of both over interleaved pairs, after one warm-up each."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(PAIRS + 1):
        for held, work in zip(times, (ours, peer), strict=True):
            start = time.process_time()
            for _ in range(repeat):
                work()
            if number:
                held.append((time.process_time() - start) / repeat)
    first, second = (statistics.median(held) for held in times)
    return {"ours": first, "peer": second, "ratio": second / first, "unit": "CPU-s"}


def street_label(height: int = 1080, width: int = 1920, classes: int = 19) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A label map with smooth regions: arg-max of enlarged noise, a part of it void."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, classes, 14, 24, generator=generator)
    label = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").argmax(1)[0]
    return label.numpy().astype(np.uint8)


def bench_codec() -> dict[str, Entry]:
    """Label codec against Pillow's PNG of level 6 on 1920x1080 with 19 classes."""
    label = street_label()
    code, png = encode_label(label), _png(label)
    size = {"ours": len(code), "peer": len(png), "ratio": len(png) / len(code), "unit": "bytes"}
    return {
        "label_codec_bytes": size,
        "label_codec_encode": pair(lambda: encode_label(label), lambda: _png(label)),
        "label_codec_decode": pair(
            lambda: decode_label(code), lambda: np.asarray(Image.open(io.BytesIO(png))), repeat=4
        ),
    }


def _png(label: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(label).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def bench_deciles() -> dict[str, Entry]:
    """Rank deciles of 375x500 scores against torch.quantile and np.quantile."""
    scores = np.random.default_rng(0).random((375, 500)).astype(np.float32)
    levels = np.linspace(0.1, 0.9, 9)
    tensor, cuts = torch.from_numpy(scores), torch.from_numpy(levels).float()
    return {
        "deciles_torch": pair(
            lambda: deciles(scores), lambda: torch.bucketize(tensor, torch.quantile(tensor, cuts)), repeat=3
        ),
        "deciles_numpy": pair(
            lambda: deciles(scores), lambda: np.digitize(scores, np.quantile(scores, levels)), repeat=3
        ),
    }


def bench_smoothgrad(name: str = "resnet18", samples: int = 8) -> dict[str, Entry]:
    """SmoothGrad maps against Captum's NoiseTunnel(Saliency), 224 px, float32."""
    model = timm.create_model(name).eval().requires_grad_(False)
    image = torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(0))
    noise = unit_noise(seed=0, image_id="x", num_samples=samples, height=224, width=224)
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(model))
    scale = 0.1 * float(image.max() - image.min())
    spec = SmoothGradSpec(samples=samples, score="logit")

    def peer() -> object:
        return tunnel.attribute(image[None].requires_grad_(), nt_samples=samples, stdevs=scale, target=5, abs=False)

    def ours() -> object:
        return explain(model, image, target=5, explainer=spec, noise=noise, seed=0, chunk=samples)

    return {f"smoothgrad_{name}_fp32": pair(ours, peer)}


def bench_confusion() -> dict[str, Entry]:
    """Confusion matrix of 1024x2048 with 19 classes against numpy's bincount over valid pixels."""
    truth, guess = street_label(1024, 2048).astype(np.int64), street_label(1024, 2048)[::-1].astype(np.int64)
    truth[:100] = 255

    def ours() -> object:
        counted = ConfusionMatrix(19, 255)
        counted.update(guess, truth)
        return counted.matrix

    def peer() -> object:
        valid = truth != 255
        return np.bincount(19 * truth[valid] + guess[valid], minlength=361)

    return {"confusion_numpy": pair(ours, peer)}


def main() -> None:
    """Run all, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="out/bench.json")
    output = Path(parser.parse_args().output)
    torch.set_num_threads(1)
    entries: dict[str, Entry] = {}
    for bench in (bench_codec, bench_deciles, bench_confusion, bench_smoothgrad):
        for name, entry in bench().items():
            entries[name] = entry
            print(
                f"{name:<24} {entry['ratio']:6.2f} x  ({entry['ours']:.4g} against {entry['peer']:.4g} {entry['unit']})"
            )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(entries, indent=2))


if __name__ == "__main__":
    main()
