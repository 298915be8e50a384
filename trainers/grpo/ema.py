"""Moving average of the trained parameters: what is evaluated and exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from diffusers.training_utils import EMAModel
from torch import Tensor, nn


class Ema:
    """diffusers' EMAModel over named parameters, stepped once in `every` optimiser steps.

    Its decay warms up as in the published recipe: min((1 + n) / (10 + n), `decay`) with n the averages made before, and
    0 for the first, which replaces the initial values. So the average does not lag behind what was learned.
    parameters: name -> Parameter; the average never shares memory with them.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float = 0.9, every: int = 8) -> None:
        self.parameters = dict(parameters)
        self.every = every
        self.model = EMAModel(self.parameters.values(), decay=decay)

    @property
    def average(self) -> dict[str, Tensor]:
        return dict(zip(self.parameters, self.model.shadow_params, strict=True))

    def step(self, optimizer_step: int) -> None:
        """Call after every optimiser step with its number, counted from 1."""
        if optimizer_step % self.every == 0:
            self.model.optimization_step = optimizer_step // self.every - 1
            self.model.step(self.parameters.values())

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the parameters hold the average; afterwards exactly what they held before."""
        trained = [p.detach().clone() for p in self.parameters.values()]
        self.model.copy_to(self.parameters.values())
        try:
            yield
        finally:
            for parameter, value in zip(self.parameters.values(), trained, strict=True):
                parameter.data.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        """Name -> average, copied. How many averages were made follows from the number of optimiser steps."""
        return {name: value.clone() for name, value in self.average.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over averages saved by `state_dict`. Raises ValueError when names or shapes are not this model's."""
        own = self.average
        wrong = sorted(set(state) ^ set(own))
        wrong += [n for n, v in own.items() if n in state and state[n].shape != v.shape]
        if wrong:
            raise ValueError(f"the saved average is of another model; first difference: {wrong[0]}")
        for name, value in own.items():
            value.copy_(state[name])
