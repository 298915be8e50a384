"""Noise levels of a flow-matching sampler, addressed by step index.

Latents move along x_sigma = (1 - sigma) x_0 + sigma noise; the model predicts the velocity v = noise - x_0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True)
class Schedule:
    """Noise levels of N denoising steps.

    `sigmas` float32 [N+1] from almost 1 down to 0; `timesteps` int64 [N] (0..1000).
    """

    sigmas: Tensor
    timesteps: Tensor

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def timestep_batch(self, index: int, count: int) -> Tensor:
        """The timestep of step `index` for `count` samples: int64 [count]."""
        return self.timesteps[index].expand(count)

    def levels(self, index: int | Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        """sigmas[index] and sigmas[index + 1], shaped [B, 1, ...] to broadcast over `latents` [B, ...].

        `index` is one step for all samples, or int64 [B]. Raises ValueError for a step outside the schedule.
        """
        batch = latents.shape[0]
        if isinstance(index, int):
            index = torch.full((batch,), index, dtype=torch.long)
        if index.shape != (batch,):
            raise ValueError(
                f"step index must be one number or {batch} (one per sample), not shape {tuple(index.shape)}"
            )
        if index.device.type == "cpu" and (index.min() < 0 or index.max() >= self.steps):
            raise ValueError(f"step index {index.tolist()} is outside the {self.steps} steps of the schedule")
        index = index.to(self.sigmas.device)
        shape = (batch,) + (1,) * (latents.ndim - 1)
        return self.sigmas[index].view(shape), self.sigmas[index + 1].view(shape)


def flow_schedule(steps: int, shift: float, device: torch.device | str | None = None) -> Schedule:
    """The schedule of diffusers' UniPC with flow sigmas: sigma = shift l / (1 + (shift - 1) l), l from 0.999 down to 0.

    Timesteps are 1000 sigma truncated to integers, so neighbours may coincide: never search a step by its timestep.
    Raises ValueError for less than one step or a shift that is not positive.
    """
    if steps < 1 or shift <= 0:
        raise ValueError(f"a schedule needs steps >= 1 and shift > 0, not steps {steps}, shift {shift}")
    linear = 1.0 - np.linspace(1.0, 1.0 / TRAIN_TIMESTEPS, steps + 1)
    sigmas = (shift * linear / (1.0 + (shift - 1.0) * linear))[:0:-1]
    timesteps = (sigmas * TRAIN_TIMESTEPS).astype(np.int64)
    levels = np.append(sigmas, 0.0).astype(np.float32)
    return Schedule(torch.from_numpy(levels).to(device), torch.from_numpy(timesteps).to(device))
