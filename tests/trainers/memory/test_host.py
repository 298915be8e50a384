"""Frozen weights in host memory: models leave the device and come back as they were, and a LoRA stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import LayerNorm, Linear, Sequential

from trainers.lora.inject import add_lora, lora_parameters
from trainers.memory.host import ALIGNMENT, HostWeights, Offloaded
from trainers.tinyworld.models import build_vace

CPU = torch.device("cpu")


@pytest.fixture
def model():
    torch.manual_seed(0)
    mixed = Sequential(Linear(3, 5), LayerNorm(5), Linear(5, 2).to(torch.bfloat16)).requires_grad_(False)
    mixed.register_buffer("table", torch.arange(3.0))
    return mixed


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


def test_weights_keep_their_values_types_and_shapes(model):
    before = values(model)
    weights = HostWeights(model, CPU)
    assert same(values(model), before)
    assert all(p.data_ptr() % ALIGNMENT == weights.buffer.data_ptr() % ALIGNMENT for p in model.parameters())


def test_a_loaded_model_computes_with_the_copy_and_leaves_it_again(model):
    before = values(model)
    offloaded = Offloaded(model, CPU)
    host = model[0].weight.data_ptr()
    offloaded.load()
    assert model[0].weight.data_ptr() != host and same(values(model), before)
    offloaded.unload()
    assert model[0].weight.data_ptr() == host and same(values(model), before)


def test_a_lora_stays_where_it_is_and_is_trained():
    transformer = build_vace()
    add_lora(transformer, rank=2, alpha=2, seed=0)
    places = {name: p.data_ptr() for name, p in lora_parameters(transformer).items()}
    offloaded = Offloaded(transformer, CPU)
    for move in (offloaded.load, offloaded.unload):
        move()
        assert {name: p.data_ptr() for name, p in lora_parameters(transformer).items()} == places
        assert all(p.requires_grad for p in lora_parameters(transformer).values())
