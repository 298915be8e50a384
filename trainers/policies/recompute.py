"""Gradient checkpointing of as many of a transformer's blocks as memory asks for."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .blocks import running_blocks

HEADROOM = 0.1
"""Share of the device's memory that keeping activations leaves free: the backward pass needs room as well."""


class Recompute:
    """For diffusers' `enable_gradient_checkpointing`: runs a block, and keeps its activations or recomputes them.

    `share`: of the blocks whose activations are recomputed in the backward pass, from 0 to 1, spread evenly. `auto`: on
    a GPU only as many as must be, by the free memory and by what the first block of the forward before took; elsewhere
    none. `limit`: bytes of the GPU's memory that may be used, if not all. Recomputing changes no number.
    """

    def __init__(self, transformer: nn.Module, share: float | Literal["auto"], limit: int | None = None) -> None:
        self.blocks = running_blocks(transformer)
        self.share, self.limit = share, limit
        self.places = {id(block): place for place, block in enumerate(self.blocks)}
        self.kept = 0
        self.bytes: dict[tuple[int, ...], int] = {}

    def __call__(self, block: nn.Module, *inputs: Tensor):
        place = self.places[id(block)]
        if self.share == "auto":
            return self._as_memory_allows(block, place, inputs)
        # Even spread: the place at which the running sum of shares passes a whole number.
        chosen = int((place + 1) * self.share) > int(place * self.share)
        return _recomputed(block, inputs) if chosen else block(*inputs)

    def _as_memory_allows(self, block: nn.Module, place: int, inputs: tuple[Tensor, ...]):
        device, shape = inputs[0].device, tuple(inputs[0].shape)
        if device.type != "cuda":
            return block(*inputs)
        if place == 0:
            self.kept = self._fitting(device, shape)
            before = torch.cuda.memory_allocated(device)
            out = block(*inputs)
            self.bytes[shape] = max(1, torch.cuda.memory_allocated(device) - before)
            return out
        return block(*inputs) if place < self.kept else _recomputed(block, inputs)

    def _fitting(self, device: torch.device, shape: tuple[int, ...]) -> int:
        """How many blocks can keep their activations for an input of `shape`; one until that was measured."""
        if shape not in self.bytes:
            return 1
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        if self.limit is not None:
            free, total = min(free, self.limit - reserved), min(total, self.limit)
        unused = reserved - torch.cuda.memory_allocated(device)
        return int((free + unused - HEADROOM * total) / self.bytes[shape])


def _recomputed(block: nn.Module, inputs: tuple[Tensor, ...]):
    return checkpoint(block, *inputs, use_reentrant=False)
