"""One step of the denoising process: stochastic (Flow-SDE, CPS) or deterministic, addressed by step index.

Latents move along x_sigma = (1 - sigma) x_0 + sigma noise; the model predicts the velocity v = noise - x_0.
Everything is float32, whatever the model's dtype: log-probabilities of neighbouring policies differ by less than
bfloat16 can say.
"""

from __future__ import annotations

import math
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


@dataclass(frozen=True)
class Transition:
    """One stochastic step of B samples.

    `next_latents`, `mean`: float32 [B, ...]. `std`, `sqrt_neg_dt`: float32 [B, 1, ...]; the standard deviation of the
    transition is their product. `log_prob`: float32 [B], averaged over all but the batch; its gradient flows through
    `mean`.
    """

    next_latents: Tensor
    mean: Tensor
    std: Tensor
    sqrt_neg_dt: Tensor
    log_prob: Tensor


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


def sde_step(
    latents: Tensor,
    velocity: Tensor,
    schedule: Schedule,
    index: int | Tensor,
    noise: Tensor | None = None,
    next_latents: Tensor | None = None,
) -> Transition:
    """Flow-SDE step from sigmas[index] to sigmas[index + 1].

    latents, velocity: [B, ...]; index: one step for all, or int64 [B]. Give `noise` (unit Gaussian, [B, ...]) to sample
    the next latents, or `next_latents` to evaluate the density of given ones; both paths compute the density alike, to
    the bit.

        std  = s_N + (s_1 - s_N) s_i                     (s_1: the second noise level, s_N = 0 the last)
        mean = x (1 + std^2 dt / (2 s_i)) + v (1 + std^2 (1 - s_i) / (2 s_i)) dt,   dt = s_{i+1} - s_i
        next = mean + std sqrt(-dt) noise

    Source: Flow-GRPO (arXiv 2505.05470) as published in identity-grpo's `sde_step_with_logprob`.
    Raises ValueError unless exactly one of `noise` and `next_latents` is given, or for a step outside the schedule.
    """
    x, v = latents.float(), velocity.float()
    sigma, sigma_next = _levels(schedule, index, x)
    last, second = schedule.sigmas[-1], schedule.sigmas[1]
    std = last + (second - last) * sigma
    dt = sigma_next - sigma
    sqrt_neg_dt = torch.sqrt(-dt)
    mean = x * (1 + std**2 / (2 * sigma) * dt) + v * (1 + std**2 * (1 - sigma) / (2 * sigma)) * dt
    deviation = std * sqrt_neg_dt
    next_latents = _sample(mean, deviation, noise, next_latents)
    density = (
        -((next_latents.detach() - mean) ** 2) / (2 * deviation**2) - torch.log(deviation) - 0.5 * math.log(2 * math.pi)
    )
    return Transition(next_latents, mean, std, sqrt_neg_dt, density.flatten(1).mean(1))


def cps_step(
    latents: Tensor,
    velocity: Tensor,
    schedule: Schedule,
    index: int | Tensor,
    noise: Tensor | None = None,
    next_latents: Tensor | None = None,
    eta: float = 0.8,
) -> Transition:
    """Coefficients-preserving step: adds as much noise as it removes, and stays at the schedule's noise level.

        d = s_{i+1} sin(eta pi / 2),  mean = (1 - s_{i+1}) x_0 + sqrt(s_{i+1}^2 - d^2) x_1,  next = mean + d noise
        log_prob = -mean((next - mean)^2)               (no variance in it: the authors' choice, which `log_prob` keeps)

    with x_0 = x - s_i v and x_1 = x + (1 - s_i) v. In the result `std` is d and `sqrt_neg_dt` is 1.
    The last step (s_{i+1} = 0) has no noise: it can be sampled, but has no KL and is no step to train.
    Arguments and errors as `sde_step`; `eta` in 0..1 is the share of noise that is drawn anew.
    Source: arXiv 2509.05952, released as FlowCPS.
    """
    x, v = latents.float(), velocity.float()
    sigma, sigma_next = _levels(schedule, index, x)
    std = sigma_next * math.sin(eta * math.pi / 2)
    kept = sigma_next * math.cos(eta * math.pi / 2)
    mean = (1 - sigma_next) * (x - sigma * v) + kept * (x + (1 - sigma) * v)
    next_latents = _sample(mean, std, noise, next_latents)
    log_prob = -((next_latents.detach() - mean) ** 2).flatten(1).mean(1)
    return Transition(next_latents, mean, std, torch.ones_like(std), log_prob)


def ode_step(latents: Tensor, velocity: Tensor, schedule: Schedule, index: int | Tensor) -> Tensor:
    """Euler step x + dt v without noise: float32 [B, ...]. Arguments and errors as `sde_step`."""
    x = latents.float()
    sigma, sigma_next = _levels(schedule, index, x)
    return x + (sigma_next - sigma) * velocity.float()


def _levels(schedule: Schedule, index: int | Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
    """sigmas[index], sigmas[index + 1] as [B, 1, ...] beside the latents."""
    batch = latents.shape[0]
    if isinstance(index, int):
        index = torch.full((batch,), index, dtype=torch.long)
    if index.shape != (batch,):
        raise ValueError(f"step index must be one number or {batch} (one per sample), not shape {tuple(index.shape)}")
    if index.device.type == "cpu" and (index.min() < 0 or index.max() >= schedule.steps):
        raise ValueError(f"step index {index.tolist()} is outside the {schedule.steps} steps of the schedule")
    index = index.to(schedule.sigmas.device)
    shape = (batch,) + (1,) * (latents.ndim - 1)
    return schedule.sigmas[index].view(shape), schedule.sigmas[index + 1].view(shape)


def _sample(mean: Tensor, deviation: Tensor, noise: Tensor | None, next_latents: Tensor | None) -> Tensor:
    if (noise is None) == (next_latents is None):
        raise ValueError("give either noise (to sample) or next_latents (to evaluate), not both and not neither")
    given = noise if next_latents is None else next_latents
    if given.shape != mean.shape:
        raise ValueError(
            f"noise or next_latents of shape {tuple(given.shape)} for latents of shape {tuple(mean.shape)}"
        )
    return mean + deviation * noise.float() if next_latents is None else next_latents.float()
