"""Fifteen trained classifiers for the ensemble of PSSL, each from one published file whose name carries its hash.

The paper names no list; these are the fifteen of specs: PSSL section 3, balanced over families, all convolutional and
trained at 224 px. By the convention of torch.hub the last part of a file's name is the beginning of its SHA-256. The
addresses are those of timm's own table; where timm left them out since it prefers a hub without hashes, that of an
earlier timm (DenseNet-121) or of torchvision (DenseNet-169, VGG), from which the hub's copies were made.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from seg_models.weights.classifiers import ClassifierSpec

_RELEASES = "https://github.com/huggingface/pytorch-image-models/releases/download"
RSB, RA = f"{_RELEASES}/v0.1-rsb-weights", f"{_RELEASES}/v0.1-weights"
PYTORCH = "https://download.pytorch.org/models"


class Published(NamedTuple):
    """A published file, and how its network was evaluated; PSSL explains the whole image and crops nothing."""

    name: str
    """timm's name, with the tag of the training."""
    url: str
    crop: float
    """Side of the centre crop, relative to the short side."""
    interpolation: Literal["bicubic", "bilinear"]
    match: Literal["name", "torchvision"] = "name"

    @property
    def file_name(self) -> str:
        """Last part of the address."""
        return self.url.rpartition("/")[2]

    @property
    def sha256(self) -> str:
        """Beginning of the file's SHA-256, in hexadecimal."""
        return self.file_name.removesuffix(".pth").rpartition("-")[2]

    def spec(self, folder: str | None = None) -> ClassifierSpec:
        """The classifier, with its weights from the published address or from a folder that holds the file."""
        weights = self.url if folder is None else f"{folder.rstrip('/')}/{self.file_name}"
        return ClassifierSpec(name=self.name, weights=weights, weights_sha256=self.sha256, match=self.match)


TIMM15 = (
    Published("resnet18.a1_in1k", f"{RSB}/resnet18_a1_0-d63eafa0.pth", 0.95, "bicubic"),
    Published("resnet34.a1_in1k", f"{RSB}/resnet34_a1_0-46f8f793.pth", 0.95, "bicubic"),
    Published("resnet50.a1_in1k", f"{RSB}/resnet50_a1_0-14fe96d1.pth", 0.95, "bicubic"),
    Published("resnet101.a1h_in1k", f"{RSB}/resnet101_a1h-36d3f2aa.pth", 0.95, "bicubic"),
    Published("resnet152.a1h_in1k", f"{RSB}/resnet152_a1h-dc400468.pth", 0.95, "bicubic"),
    Published("resnext50_32x4d.a1h_in1k", f"{RSB}/resnext50_32x4d_a1h-0146ab0a.pth", 0.95, "bicubic"),
    Published("wide_resnet50_2.racm_in1k", f"{RA}/wide_resnet50_racm-8234f177.pth", 0.875, "bicubic"),
    Published("densenet121.ra_in1k", f"{RA}/densenet121_ra-50efcf5c.pth", 0.875, "bicubic", "torchvision"),
    Published("densenet169.tv_in1k", f"{PYTORCH}/densenet169-b2777c0a.pth", 0.875, "bicubic", "torchvision"),
    Published("vgg16_bn.tv_in1k", f"{PYTORCH}/vgg16_bn-6c64b313.pth", 0.875, "bilinear", "torchvision"),
    Published("vgg19_bn.tv_in1k", f"{PYTORCH}/vgg19_bn-c79401a0.pth", 0.875, "bilinear", "torchvision"),
    Published("mobilenetv2_100.ra_in1k", f"{RA}/mobilenetv2_100_ra-b33bc2c4.pth", 0.875, "bicubic"),
    Published("mobilenetv3_large_100.ra_in1k", f"{RA}/mobilenetv3_large_100_ra-f55367f5.pth", 0.875, "bicubic"),
    Published("efficientnet_b0.ra_in1k", f"{RA}/efficientnet_b0_ra-3dd342df.pth", 0.875, "bicubic"),
    Published("regnety_032.ra_in1k", f"{RA}/regnety_032_ra-7f2439f9.pth", 0.95, "bicubic"),
)


def timm15_ensemble(folder: str | None = None) -> tuple[ClassifierSpec, ...]:
    """The fifteen classifiers; with `folder`, a path or an address, the files are taken from there."""
    return tuple(published.spec(folder) for published in TIMM15)


def published_file(name: str, sha256: str | None) -> Published | None:
    """The published file behind a classifier of this ensemble, wherever its weights are taken from."""
    return next((one for one in TIMM15 if (one.name, one.sha256) == (name, sha256)), None)
