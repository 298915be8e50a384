"""What of a model is on the device while it works, so that it and its work fit there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import comfy.model_management as management
from torch import nn

from ..trainers.memory.blocks import SLOTS
from .memory import module_bytes


@dataclass(frozen=True)
class Fit:
    """`swapped`: blocks that wait in host memory, none if all weights fit. `at_once`: parts of the work that share a
    pass; one even where there is no room for one.
    """

    swapped: tuple[nn.Module, ...]
    at_once: int


def room() -> float:
    """Bytes of the device that models and their work may take; without a GPU there is no limit.

    It counts what ComfyUI can free, and leaves out what ComfyUI leaves out: 0.8 GiB, and what `--reserve-vram` keeps.
    """
    device = management.get_torch_device()
    if device.type == "cpu":
        return math.inf
    return management.get_total_memory(device) - management.minimum_inference_memory()


def fit(model: nn.Module, blocks: Sequence[nn.Module], working_bytes: float, most: int = 1) -> Fit:
    """How `model` works in the device's memory.

    blocks: those that may be swapped, as they compute; working_bytes: of one part of the work, of `most` parts.
    """
    weights, swapped = module_bytes(model), ()
    if weights + working_bytes > room():
        swapped = tuple(blocks)
        sizes = [module_bytes(block) for block in blocks]
        weights -= sum(sizes) - SLOTS * max(sizes)
    spare = room() - weights
    return Fit(swapped, most if math.isinf(spare) else max(1, min(most, int(spare // working_bytes))))
