"""The parts of a block that are faster on a CPU, against diffusers' own."""

from __future__ import annotations

import copy

import pytest
import torch

from trainers.lora.inject import add_lora, lora_disabled, lora_parameters
from trainers.policies.cpu_blocks import use_cpu_blocks


@pytest.fixture
def transformers(parts):
    """diffusers' transformer with a LoRA, and the same with the faster parts."""
    original = parts[0]
    add_lora(original, rank=4, alpha=8, seed=0)
    for factor in lora_parameters(original).values():
        factor.data = 0.1 * torch.randn_like(factor)
    faster = copy.deepcopy(original)
    use_cpu_blocks(faster)
    return original, faster


@pytest.fixture
def inputs(kind):
    """Of three samples; the first two have one text."""
    texts = torch.randn(3, 12, 16)
    texts[1] = texts[0]
    control = {"control_hidden_states": torch.randn(3, 96, 3, 4, 6)} if kind == "vace" else {}
    return {
        "hidden_states": torch.randn(3, 16, 3, 4, 6),
        "timestep": torch.tensor([1000.0, 500.0, 20.0]),
        "encoder_hidden_states": texts,
        "return_dict": False,
    } | control


def gradients(transformer):
    return {name: factor.grad for name, factor in lora_parameters(transformer).items()}


def test_velocity_and_gradients_are_those_of_diffusers(transformers, inputs):
    (expected,), (found,) = (transformer(**inputs) for transformer in transformers)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for velocity in (expected, found):
        velocity.square().sum().backward()
    expected, found = (gradients(transformer) for transformer in transformers)
    assert all(gradient.any() for gradient in expected.values())
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_with_and_without_gradient_every_bit_is_the_same(transformers, inputs):
    faster = transformers[1]
    with torch.no_grad():
        sampled = faster(**inputs)[0]
    assert torch.equal(faster(**inputs)[0], sampled)


def test_the_base_policy_is_that_of_diffusers(transformers, inputs):
    outputs = []
    for transformer in transformers:
        with torch.no_grad(), lora_disabled(transformer):
            outputs.append(transformer(**inputs)[0])
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)


def test_half_precision_is_left_to_diffusers(transformers, inputs):
    half = {k: v.bfloat16() if torch.is_tensor(v) and k != "timestep" else v for k, v in inputs.items()}
    with torch.no_grad():
        expected, found = (transformer.bfloat16()(**half)[0] for transformer in transformers)
    assert torch.equal(found, expected)


def test_the_weights_keep_their_names(transformers):
    original, faster = transformers
    assert list(faster.state_dict()) == list(original.state_dict())
