"""Block swap: a transformer's blocks wait in host memory, and are copied to the device one ahead of the computation.

The device holds two blocks. While one computes, the next is copied over the other on a stream of its own: the
following one in the forward pass, the one before in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .host import HostWeights

SLOTS = 2


class BlockSwap:
    """Swaps `blocks`, which run in this order, through two slots on `device`.

    Works without gradient, and with gradient if every block is a gradient checkpoint of its own: its weights are needed
    again when the backward pass recomputes it, and not in between (`MemoryPlan.recompute_all`).
    Trainable parameters in the blocks stay on the device.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self._weights = [HostWeights(block, device) for block in blocks]
        self._device = device
        self._slots: list[Tensor] = []
        self._holds: list[int | None] = [None] * SLOTS
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copied: list[torch.cuda.Event | None] = [None] * SLOTS
        self._last = -1
        self._calls = [(block, block._compiled_call_impl) for block in blocks]
        for index, (block, call) in enumerate(self._calls):
            # What `block(...)` calls: around a compiled block, where a hook would be compiled with it.
            block._compiled_call_impl = partial(self._call, index, call or block._call_impl)

    @property
    def bytes(self) -> int:
        """Of device memory while blocks compute."""
        return SLOTS * max(weights.bytes for weights in self._weights)

    def empty(self) -> None:
        """Free the device's memory until a block computes again. Until then the weights are those in host memory."""
        if self._stream is not None:  # a copy may be under way to memory that is given to others now
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        for slot, index in enumerate(self._holds):
            if index is not None:
                self._weights[index].attach(self._weights[index].buffer)
            self._holds[slot] = None
        self._slots = []

    def remove(self) -> None:
        """The blocks compute where their weights are again, which is in host memory at first."""
        self.empty()
        for block, call in self._calls:
            block._compiled_call_impl = call

    def _call(self, index: int, compute: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
        self._enter(index)
        return compute(*inputs, **named)

    def _enter(self, index: int) -> None:
        """Block `index` is about to compute: it is on the device then, and the next one on its way."""
        forward = index == 0 or index > self._last
        self._last = index
        self._fetch(index)
        if self._stream is not None:
            torch.cuda.current_stream().wait_event(self._copied[index % SLOTS])
        following = index + 1 if forward else index - 1
        if 0 <= following < len(self._weights):
            self._fetch(following)

    def _fetch(self, index: int) -> None:
        """Begin to copy a block, unless it is on the device or on its way."""
        if not self._slots:
            sizes = [self.bytes // SLOTS] * SLOTS
            self._slots = [torch.empty(size, dtype=torch.uint8, device=self._device) for size in sizes]
        slot, weights = index % SLOTS, self._weights[index]
        if self._holds[slot] == index:
            return
        held = self._holds[slot]
        if held is not None:
            self._weights[held].attach(self._weights[held].buffer)
        target = self._slots[slot][: weights.bytes]
        if self._stream is None:
            target.copy_(weights.buffer)
        else:
            # All work of the block that is replaced was queued before this point.
            self._stream.wait_event(torch.cuda.current_stream().record_event())
            with torch.cuda.stream(self._stream):
                target.copy_(weights.buffer, non_blocking=True)
                self._copied[slot] = self._stream.record_event()
        weights.attach(target)
        self._holds[slot] = index
