"""The linear layer with a LoRA."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import Linear

from trainers.lora.layer import LoraLinear


def make_layer(width, rank=4, dtype=torch.float32):
    torch.manual_seed(0)
    layer = LoraLinear(Linear(width, width, dtype=dtype).requires_grad_(False), rank, scale=2.0)
    nn.init.normal_(layer.lora_A)
    nn.init.normal_(layer.lora_B)
    return layer


@pytest.mark.parametrize("width", [16, 17])
def test_the_output_is_that_of_the_base_and_the_change(width):
    layer, x = make_layer(width), torch.randn(5, width)
    assert layer.merges == (width == 16)
    layer(x).square().sum().backward()
    found = layer(x), layer.lora_A.grad, layer.lora_B.grad
    a, b = (factor.detach().double().requires_grad_() for factor in (layer.lora_A, layer.lora_B))
    base = layer.base.weight.double(), layer.base.bias.double()
    exact = x.double() @ base[0].T + base[1] + 2 * (x.double() @ a.T @ b.T)
    exact.square().sum().backward()
    for ours, theirs in zip(found, (exact, a.grad, b.grad), strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-3, rtol=1e-4)


def test_a_half_precision_base_is_not_merged():
    assert not make_layer(16, dtype=torch.bfloat16).merges
