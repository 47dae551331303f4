"""Linear maps by oneDNN: results and gradients are those of the map, and a copy of a model has weights of its own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from spunge.weights.linear import use_onednn

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
LARGE, SMALL = 500, 2  # rows


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(160, 200)
    use_onednn(made)
    return made


@pytest.mark.parametrize("rows", [LARGE, SMALL])
@pytest.mark.parametrize("frozen", [True, False])
def test_results_and_gradients_are_those_of_the_same_map_in_float64(layer: nn.Linear, rows: int, frozen: bool) -> None:
    layer.weight.requires_grad_(not frozen)
    given = torch.randn(2, rows, 160)
    exact = [part.detach().double().requires_grad_() for part in (given, layer.weight, layer.bias)]
    expected = linear(*exact)
    expected.square().sum().backward()

    read = given.requires_grad_()
    result = layer(read)
    result.square().sum().backward()

    torch.testing.assert_close(result, expected.float(), rtol=1e-5, atol=1e-5)
    for found, wanted in zip((read, layer.weight, layer.bias), exact, strict=True):
        if found is layer.weight and frozen:
            assert found.grad is None
        else:
            assert found.grad is not None
            assert wanted.grad is not None
            torch.testing.assert_close(found.grad, wanted.grad.float(), rtol=1e-4, atol=1e-3)


def test_a_copy_multiplies_with_its_own_weights(layer: nn.Linear) -> None:
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight.zero_()
        other.bias.zero_()

    assert not other(torch.randn(LARGE, 160)).any()
    assert layer(torch.randn(LARGE, 160)).any()


def test_a_frozen_map_keeps_nothing_of_what_it_read(layer: nn.Linear) -> None:
    layer.requires_grad_(False)
    kept: list[torch.Size] = []

    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved.shape) or saved, lambda kept: kept):
        layer(torch.randn(LARGE, 160, requires_grad=True))

    assert kept == [layer.weight.shape]


def test_what_is_no_float32_is_left_to_torch(layer: nn.Linear) -> None:
    read = torch.randn(LARGE, 160)
    half = copy.deepcopy(layer).bfloat16()

    assert torch.equal(half(read.bfloat16()), linear(read.bfloat16(), half.weight, half.bias))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(read).dtype == torch.bfloat16
