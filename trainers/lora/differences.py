"""Full differences in a LoRA file: what is added to biases, norms and other weights that have no factors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..errors import UserError
from .adapter import LoRA

_BEFORE = "_before_differences"


def check_differences(transformer: nn.Module, lora: LoRA) -> None:
    """Raises UserError when the transformer lacks a parameter that `lora` changes, or has it in another shape."""
    own = _parameters(transformer)
    for name, difference in lora.differences.items():
        if name not in own:
            raise UserError(
                f"the LoRA changes {name}, which this model does not have: it was made for another model; choose one "
                "for this model"
            )
        if own[name].shape != difference.shape:
            raise UserError(
                f"the LoRA's {name} is {tuple(difference.shape)}, the model's {tuple(own[name].shape)}: it was made "
                "for a model of another size"
            )
        if own[name].element_size() == 1:
            raise UserError(
                f"the LoRA changes {name} without factors, and this model's weights are as stored, in 8 bits; load it "
                "with `weights` converted"
            )


@torch.no_grad()
def add_differences(transformer: nn.Module, lora: LoRA, strength: float) -> None:
    """Add strength * difference to every parameter that `lora` changes so, in float32, as ComfyUI does.

    Those of another LoRA are removed first.
    """
    remove_differences(transformer)
    own = _parameters(transformer)
    before: dict[str, Tensor] = {}
    for name, difference in lora.differences.items():
        before[name] = own[name].detach().cpu().clone()
        added = difference.to(own[name].device, torch.float32) * strength
        own[name].copy_(own[name].float() + added)
    setattr(transformer, _BEFORE, before)


@torch.no_grad()
def remove_differences(transformer: nn.Module) -> None:
    """Make the parameters what they were before `add_differences`."""
    own = _parameters(transformer)
    for name, value in getattr(transformer, _BEFORE, {}).items():
        own[name].copy_(value)
    setattr(transformer, _BEFORE, {})


@contextmanager
def differences_disabled(transformer: nn.Module) -> Iterator[None]:
    """Within the block the parameters are those from before `add_differences`."""
    own, before = _parameters(transformer), getattr(transformer, _BEFORE, {})
    changed = {name: own[name].detach().clone() for name in before}
    with torch.no_grad():
        for name, value in before.items():
            own[name].copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in changed.items():
                own[name].copy_(value)


def _parameters(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """The bare transformer's parameters by their names without adapted layers."""
    return {name.replace(".base.", "."): parameter for name, parameter in transformer.named_parameters()}
