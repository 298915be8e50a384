"""Moving average of the trained parameters: what is evaluated and exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """average <- decay average + (1 - decay) parameter, once in `every` optimiser steps, float32.

    parameters: name -> Parameter; the average starts at their present values and never shares memory with them.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float = 0.9, every: int = 8) -> None:
        self.parameters = dict(parameters)
        self.decay = decay
        self.every = every
        self.average = {name: p.detach().float().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def step(self, optimizer_step: int) -> None:
        """To be called after every optimiser step with its number, counted from 1."""
        if optimizer_step % self.every == 0:
            for name, parameter in self.parameters.items():
                self.average[name].lerp_(parameter.float(), 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the parameters hold the average; afterwards exactly what they held before."""
        trained = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._write(self.average)
        try:
            yield
        finally:
            self._write(trained)

    def state_dict(self) -> dict[str, Tensor]:
        """Name -> average, copied."""
        return {name: value.clone() for name, value in self.average.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over averages saved by `state_dict`. Raises ValueError when names or shapes are not this model's."""
        wrong = sorted(set(state) ^ set(self.average))
        wrong += [n for n, v in self.average.items() if n in state and state[n].shape != v.shape]
        if wrong:
            raise ValueError(f"the saved average is of another model; first difference: {wrong[0]}")
        for name, value in self.average.items():
            value.copy_(state[name])

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])
