"""The parts of EncNet against the literal tensor of its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from seg_models.outputs import SemanticTarget
from seg_models.parts.encoding import ContextEncoding, Encoding, presence_loss
from tests.largest_tensor import LargestTensor

VOID = 99


def literal_encoding(features: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    """a_ik = softmax_k(s_k·‖x_i - d_k‖²), e_k = Σ_i a_ik·(x_i - d_k), with every residual held."""
    cells = features.flatten(2).transpose(1, 2)
    residuals = cells[:, :, None, :] - codewords[None, None]
    assigned = torch.softmax(scale * residuals.square().sum(dim=3), dim=2)
    return (assigned[..., None] * residuals).sum(dim=1)


@pytest.mark.parametrize(("n", "size"), [(2, (5, 7)), (1, (1, 1)), (3, (16, 9))])
def test_the_encoding_layer_and_its_gradients_equal_the_literal_tensor(n: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = Encoding(24, num_codes=6)
    nn.init.normal_(layer.codewords)  # far enough apart that assignments differ
    features = torch.randn(n, 24, *size, requires_grad=True)
    weight = torch.randn(n, 6, 24)
    wanted = (features, layer.codewords, layer.scale)
    found, expected = layer(features), literal_encoding(*wanted)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))
    own = torch.autograd.grad((found * weight).sum(), wanted)
    other = torch.autograd.grad((expected * weight).sum(), wanted)
    for one, two in zip(own, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4 * float(two.abs().max()))


def test_the_nearest_codeword_gets_the_cell() -> None:
    layer = Encoding(2, num_codes=2)
    layer.codewords.data = torch.tensor([[0.0, 0.0], [9.0, 9.0]])
    layer.scale.data = torch.tensor([-1.0, -1.0])
    encoded = layer(torch.tensor([8.0, 9.0]).view(1, 2, 1, 1))
    torch.testing.assert_close(encoded, torch.tensor([[[0.0, 0.0], [-1.0, 0.0]]]))


def test_codewords_and_scales_begin_where_the_paper_says() -> None:
    layer = Encoding(512, num_codes=32)
    bound = (32 * 512) ** -0.5
    with torch.no_grad():
        assert 0.99 * bound < float(layer.codewords.abs().max()) <= bound
        assert -1 <= float(layer.scale.min()) < float(layer.scale.max()) <= 0


def test_no_tensor_is_larger_than_the_features_forward_or_backward() -> None:
    layer, features = Encoding(16, num_codes=8), torch.randn(2, 16, 12, 12, requires_grad=True)
    with LargestTensor() as largest:
        torch.autograd.backward(layer(features).square().sum())
    assert largest.elements == features.numel()
    with LargestTensor() as literal:
        literal_encoding(features, layer.codewords, layer.scale)
    assert literal.elements == 8 * features.numel()  # what the test can see


def test_distances_stay_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    layer, features = Encoding(16, num_codes=4), torch.randn(1, 16, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(features)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, layer(features))


def test_context_encoding_gates_its_features() -> None:
    torch.manual_seed(0)
    module = ContextEncoding(8, num_codes=3).eval()
    module.norm.running_mean = torch.rand(3)
    module.norm.running_var = 0.5 + torch.rand(3)
    features = torch.randn(2, 8, 4, 5)
    literal = literal_encoding(module.project(features), module.encoding.codewords, module.encoding.scale)
    described = torch.relu(module.norm(literal)).mean(dim=1)
    gates = torch.sigmoid(functional.linear(described, module.gate.weight, module.gate.bias))
    expected = torch.relu(features * (1 + gates[:, :, None, None]))
    found, encoded = module(features)
    torch.testing.assert_close(encoded, described, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def slow_presence_loss(scores: Tensor, labels: Tensor) -> float:
    """-log of the probability given to what is true of each class, over images that say anything."""
    terms = []
    for image, row in zip(labels, scores, strict=True):
        if all(value == VOID for value in image.flatten().tolist()):
            continue
        for k, score in enumerate(row):
            truth = k in image.flatten().tolist()
            probability = torch.sigmoid(score)
            terms.append(-float(torch.log(probability if truth else 1 - probability)))
    return sum(terms) / len(terms)


def test_the_loss_of_presence_equals_a_slow_loop_and_leaves_void_images_out() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 5, generator=generator, requires_grad=True)
    labels = torch.randint(0, 3, (4, 6, 6), generator=generator)
    labels[0, 0, 0] = 4  # one pixel is enough
    labels[1, :, 3:] = VOID
    labels[2] = VOID
    loss = presence_loss(scores, SemanticTarget(labels, VOID))
    assert float(loss.detach()) == pytest.approx(slow_presence_loss(scores.detach(), labels), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert torch.count_nonzero(gradient[2]) == 0
    assert torch.count_nonzero(gradient[:2]) == 10
    assert gradient[0, 4] < 0  # present: the score should rise
    assert gradient[1, 4] > 0


def test_a_batch_of_void_has_no_loss_of_presence() -> None:
    scores = torch.randn(2, 5, requires_grad=True)
    loss = presence_loss(scores, SemanticTarget(torch.full((2, 4, 4), VOID), VOID))
    (gradient,) = torch.autograd.grad(loss, scores)
    assert float(loss.detach()) == 0
    assert torch.count_nonzero(gradient) == 0
