"""Networks for benchmarks: random weights, and the form in which we explain them. Needs neither Captum nor Ray."""

from __future__ import annotations

import copy

import timm
import torch
from torch import nn

from seg_models.numerics import Numerics
from seg_models.weights.classifiers import Classifier, ClassifierSpec


def fast_form(network: nn.Module, *, numerics: Numerics | None = None) -> Classifier:
    """A copy of a network in the form in which its explanations are computed."""
    return Classifier(copy.deepcopy(network), ClassifierSpec(name="benchmark"), numerics=numerics)


def random_network(name: str, *, size: int) -> nn.Module:
    """A timm model with random weights, its batch norms filled by one batch of random images, in eval mode."""
    torch.manual_seed(0)
    # timm starts residual branches at zero, so that nothing would flow through them.
    arguments = {"zero_init_last": False} if "resnet" in name or "resnext" in name else {}
    network: nn.Module = timm.create_model(name.partition(".")[0], **arguments)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean
    with torch.no_grad():
        network.train()(torch.randn(8, 3, size, size))
    return network.eval()


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))
