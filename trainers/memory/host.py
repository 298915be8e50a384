"""Frozen weights in host memory, and copies of them on the device while a model works.

Frozen weights never change, so leaving the device is dropping the copy: nothing is copied back.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .pages import MappedFiles

ALIGNMENT = 256  # bytes: kernels and copies are fastest from such addresses


class HostWeights:
    """The frozen tensors of a module, in one piece of host memory that is pinned for a CUDA device.

    They are views of that memory, or of what `attach` names. Trainable parameters (a LoRA) are moved to `device`, for
    good.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        tensors = [*module.parameters(), *module.buffers()]
        self._frozen = [tensor for tensor in tensors if not tensor.requires_grad]
        for tensor in tensors:
            if tensor.requires_grad:
                tensor.data = tensor.data.to(device)
        self._offsets = list(_offsets(self._frozen))
        self.bytes = self._offsets.pop()
        self.buffer, files = torch.empty(self.bytes, dtype=torch.uint8), MappedFiles()
        for tensor, view in zip(self._frozen, self._views(self.buffer), strict=True):
            view.copy_(tensor.data)
            replaced, tensor.data = tensor.data, view
            files.give_back(replaced)
        if device.type == "cuda" and self.bytes and _pin(self.buffer, device):
            # At the end of the program the driver itself unpins.
            weakref.finalize(self, _unpin, self.buffer).atexit = False

    def attach(self, buffer: Tensor) -> None:
        """Make the tensors views of `buffer`, uint8 of at least `bytes`, which holds their values."""
        for tensor, view in zip(self._frozen, self._views(buffer), strict=True):
            tensor.data = view

    def _views(self, buffer: Tensor) -> Iterator[Tensor]:
        for tensor, start in zip(self._frozen, self._offsets, strict=True):
            yield buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)


class Offloaded:
    """A model that is on the device between `load` and `unload` only; trainable parameters are always there."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._weights, self._device = HostWeights(module, device), device
        self._copy: Tensor | None = None

    def load(self) -> None:
        """Copy the weights to the device, in order with what its current stream computes next."""
        if self._copy is None:
            self._copy = torch.empty(self._weights.bytes, dtype=torch.uint8, device=self._device)
            self._copy.copy_(self._weights.buffer, non_blocking=True)
            self._weights.attach(self._copy)

    def unload(self) -> None:
        """Free the copy on the device."""
        self._weights.attach(self._weights.buffer)
        self._copy = None


def _offsets(tensors: list[Tensor]) -> Iterator[int]:
    """Where each tensor begins in a buffer, and the buffer's size."""
    start = 0
    for tensor in tensors:
        yield start
        start += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    yield start


def _pin(buffer: Tensor, device: torch.device) -> bool:
    """Pin host memory as it is; torch's own pinned memory takes the next power of two. False where the system refuses.

    Copies from memory that is not pinned are right too, and about three times as slow.
    """
    if int(torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0)) == 0:
        return True
    # The failed call's error waits for the next kernel.
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device=device).add_(1)
    return False


def _unpin(buffer: Tensor) -> None:
    torch.cuda.cudart().cudaHostUnregister(buffer.data_ptr())
