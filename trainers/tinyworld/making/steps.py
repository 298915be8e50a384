"""Shared by the trainings of TinyWorld's video models: limits of a phase, learning rate, CUDA graph of a step."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor


class Clock:
    """Limits and log of one phase, which ends after `steps` or `seconds`, whichever comes first."""

    def __init__(self, name: str, steps: int, seconds: float):
        self.name, self.steps, self.seconds, self.start, self.losses = name, steps, seconds, time.time(), []

    def fraction(self, step: int) -> float:
        """Share of the phase that is over."""
        return max(step / self.steps, (time.time() - self.start) / self.seconds)

    def running(self, step: int) -> bool:
        """Whether the phase has not ended."""
        return self.fraction(step) < 1

    def log(self, step: int, loss: Tensor, every: int = 100) -> None:
        """Add a loss; at every `every`-th step print the mean of those since the last print."""
        self.losses.append(loss.detach())
        if step % every == 0:
            mean = torch.stack(self.losses).mean().item()
            self.losses.clear()
            print(f"{self.name} step {step} loss {mean:.5f} {time.time() - self.start:.0f}s", flush=True)


def cosine(fraction: float, warmup: float = 0.02) -> float:
    """Learning-rate factor after `fraction` of the phase."""
    if fraction < warmup:
        return fraction / warmup + 0.01
    return 0.5 * (1 + torch.cos(torch.tensor(torch.pi * min(fraction, 1.0))).item()) + 0.01


def graphed(step: Callable[[], Tensor], warmup: int = 3) -> Callable[[], Tensor]:
    """The step as one CUDA graph (these models are launch-bound); unchanged on a CPU."""
    if not torch.cuda.is_available():
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(warmup):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay
