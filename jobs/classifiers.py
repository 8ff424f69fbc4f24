"""Small image classifiers trained on the class-only images of the demo; the ensemble of its PSSL stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from seg_models.weights.classifiers import ClassifierSpec

NETWORKS: dict[str, dict[str, Any]] = {
    "narrow_a": {"name": "resnet10t", "channels": (16, 32, 64, 64), "stem_width": 16},
    "narrow_b": {"name": "resnet10t", "channels": (24, 32, 48, 96), "stem_width": 16},
    "narrow_c": {"name": "resnet14t", "channels": (16, 24, 48, 96), "stem_width": 16},
}
MEAN = STD = (0.5, 0.5, 0.5)


def train_classifiers(
    images: Path, folder: Path, *, classes: tuple[str, ...], size: int, seed: int, epochs: int = 4
) -> dict[str, Any]:
    """Train every network on `images/<class>/*.png` and write its weights.

    Returns:
        `classifiers` (settings for an EnsembleSpec) and `accuracy` on the tenth of the images held out.
    """
    pixels, targets = load_images(images, classes=classes)
    held_out = torch.arange(len(targets)) % 10 == 0
    specs, accuracy = [], {}
    folder.mkdir(parents=True, exist_ok=True)
    for number, (title, settings) in enumerate(NETWORKS.items()):
        kwargs = {key: value for key, value in settings.items() if key != "name"}
        torch.manual_seed(seed + number)
        model = timm.create_model(settings["name"], num_classes=len(classes), **kwargs)
        fit(model, pixels[~held_out], targets[~held_out], epochs=epochs)
        accuracy[title] = score(model, pixels[held_out], targets[held_out])
        path = folder / f"{title}.safetensors"
        save_file(model.state_dict(), path)
        specs.append(
            ClassifierSpec(
                name=settings["name"],
                title=title,
                weights=str(path.resolve()),
                num_classes=len(classes),
                size=size,
                mean=MEAN,
                std=STD,
                model_kwargs=kwargs,
            )
        )
        print(f"classifier {title}: accuracy {accuracy[title]:.3f} on {int(held_out.sum())} held-out images")
    return {"classifiers": [spec.model_dump(mode="json") for spec in specs], "accuracy": accuracy}


def load_images(root: Path, *, classes: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) as the networks take them, and their class indices (N,), in a fixed mixed order."""
    files = [(path, index) for index, name in enumerate(classes) for path in sorted((root / name).glob("*.png"))]
    order = np.random.default_rng(0).permutation(len(files))
    pixels = np.stack([np.asarray(Image.open(files[i][0]).convert("RGB")) for i in order])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0
    return (images - MEAN[0]) / STD[0], torch.tensor([files[i][1] for i in order])


def fit(model: nn.Module, images: Tensor, targets: Tensor, *, epochs: int, batch: int = 32) -> None:
    """AdamW with one cycle of the learning rate; flips are the only augmentation."""
    steps = epochs * (len(targets) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(targets))
        for start in range(0, len(targets) - batch + 1, batch):
            chosen = order[start : start + batch]
            shown = images[chosen].flip(-1) if torch.rand(()) < 0.5 else images[chosen]
            loss = nn.functional.cross_entropy(model(shown), targets[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def score(model: nn.Module, images: Tensor, targets: Tensor) -> float:
    """Share of images whose class is found."""
    return float((model(images).argmax(1) == targets).float().mean())
