"""Self-attention alone, at the size of a run's passes, by every backend that is installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import Tensor

from .measure import Clock, Phase

TRAINS = ("native", "_native_flash", "_native_cudnn", "_native_efficient", "flash", "_flash_3")
"""diffusers' names: PyTorch's choice, its own kernels, FlashAttention 2 and 3."""
BACKENDS = (*TRAINS, "sage")
"""And one that has no gradient."""
TRIAL = 1, 64, 2  # sequences, tokens and heads with which a backend shows whether it runs here
COMPARED = 64
"""Queries of one head whose outputs are computed in float64 too."""


def attention_phases(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> list[Phase]:
    """A forward pass by each backend, and one with its backward pass by those that have one.

    shape: [videos with their guidance branches, tokens, heads, channels of a head].
    """
    sequences, tokens, heads, channels = shape
    forward = 4 * heads * channels * tokens**2  # two products, of 2 heads channels tokens^2 each
    found = []
    for name in _usable(channels, dtype, device):
        run = _forward(name, shape, dtype, device)
        found.append(Phase(f"attention, {name.strip('_')}", "sequence", sequences, dtype, run, flops=forward))
        if name in TRAINS:
            run = _with_backward(name, shape, dtype, device)
            # The backward pass has five products of this size.
            found.append(Phase(f"{found[-1].name}, gradient", "sequence", sequences, dtype, run, flops=forward * 3.5))
    return found


@torch.no_grad()
def attention_errors(shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """By backend, how far its output is from that in float64, as a share of it. `shape` as in `attention_phases`."""
    query, key, value = _inputs(shape, dtype, device)
    q, k, v = query[0, :COMPARED, 0].double(), key[0, :, 0].double(), value[0, :, 0].double()
    exact = torch.softmax(q @ k.T / shape[3] ** 0.5, -1) @ v
    errors = {}
    for name in _usable(shape[3], dtype, device):
        out = _attend(name, query, key, value)[0, :COMPARED, 0].double()
        errors[name.strip("_")] = float((out - exact).norm() / exact.norm())
    return errors


@torch.no_grad()
def _usable(channels: int, dtype: torch.dtype, device: torch.device) -> list[str]:
    """The backends that are installed and compute on this device in this type."""
    usable, inputs = [], _inputs((*TRIAL, channels), dtype, device)
    for name in BACKENDS:
        # What is not installed is None in diffusers, and kernels refuse in their own ways.
        with contextlib.suppress(RuntimeError, ImportError, TypeError, ValueError):
            _attend(name, *inputs)
            usable.append(name)
    return usable


def _forward(name: str, shape, dtype: torch.dtype, device: torch.device) -> Callable[[Clock], None]:
    @torch.no_grad()
    def run(clock: Clock) -> None:
        inputs = _inputs(shape, dtype, device)
        clock.start()
        _attend(name, *inputs)
        clock.stop()

    return run


def _with_backward(name: str, shape, dtype: torch.dtype, device: torch.device) -> Callable[[Clock], None]:
    def run(clock: Clock) -> None:
        inputs = [tensor.requires_grad_() for tensor in _inputs(shape, dtype, device)]
        clock.start()
        _attend(name, *inputs).sum().backward()
        clock.stop()

    return run


def _inputs(shape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    return [torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(3)]


def _attend(name: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return dispatch_attention_fn(query, key, value, backend=AttentionBackendName(name))
