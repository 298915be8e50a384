"""The pack's models under ComfyUI's memory management."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch import nn
from torch.nn import Linear


@pytest.fixture
def management(pack):
    import comfy.model_management

    comfy.model_management.unload_all_models()
    yield comfy.model_management
    comfy.model_management.unload_all_models()


@pytest.fixture
def managed_class(pack):
    return import_module("identity_grpo.nodes.memory").Managed


class Stack(nn.Module):
    """Two layers in a list, as transformers keep them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(4, 4) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def held(management, module: nn.Module) -> bool:
    """Whether ComfyUI counts the module among the models on the device, whole."""
    return any(
        any(m is module for m in patcher.model.modules()) and patcher.loaded_size() == patcher.model_size()
        for patcher in management.loaded_models()
    )


def test_a_model_is_unloaded_for_another_one_and_loaded_again_by_use(management, managed_class):
    stack = Stack()
    managed = managed_class(stack)
    assert managed.load() == management.get_torch_device()
    assert held(management, stack)
    management.free_memory(1e30, management.get_torch_device())
    assert not held(management, stack)
    managed.load()
    assert held(management, stack)


def test_an_unloaded_model_is_on_the_offload_device(management, managed_class, monkeypatch):
    """`meta` stands for a second device: nothing can be moved back from it, but what is moved there can be seen."""
    monkeypatch.setattr(management, "unet_offload_device", lambda: torch.device("meta"))
    stack = Stack()
    managed = managed_class(stack)
    managed.load()
    assert {p.device.type for p in stack.parameters()} == {"cpu"}
    with torch.inference_mode():
        management.free_memory(1e30, management.get_torch_device())
    assert {p.device.type for p in stack.parameters()} == {"meta"}
    assert not any(p.is_inference() for p in stack.parameters())


def test_only_the_named_parts_are_loaded(management, managed_class):
    used, unused = Stack(), Stack()
    managed = managed_class(used, unused)
    managed.load(only=[used])
    assert held(management, used) and not held(management, unused)


def test_a_part_that_is_not_managed_computes_where_it_is(management, managed_class):
    elsewhere, managed = Stack(), managed_class(Stack())
    with managed.use(elsewhere):
        elsewhere(torch.zeros(1, 4))
    assert not management.loaded_models()


@pytest.mark.parametrize("release", [False, True])
def test_parts_are_unloaded_after_use_with_release(management, managed_class, release):
    stack = Stack()
    managed = managed_class(stack, release=release)
    with managed.use():
        assert held(management, stack)
    assert held(management, stack) is not release


def test_cancel_ends_work_between_two_layers(management, managed_class):
    stack, reached = Stack(), []
    stack.layers[0].register_forward_hook(lambda *_: management.interrupt_current_processing())
    stack.layers[1].register_forward_hook(lambda *_: reached.append(1))
    with pytest.raises(management.InterruptProcessingException), managed_class(stack).use():
        stack(torch.zeros(1, 4))
    assert not reached
    stack.layers[0]._forward_hooks.clear()
    stack(torch.zeros(1, 4))  # outside of `use` no layer checks
    assert reached


def test_a_model_without_a_reference_is_dropped(management, managed_class):
    managed = managed_class(Stack())
    managed.load()
    del managed
    assert not management.loaded_models()
