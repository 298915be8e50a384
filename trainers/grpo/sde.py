"""One stochastic denoising step with its density: Flow-SDE or CPS, addressed by step index.

Everything is float32, whatever the model's dtype: log-probabilities of neighbouring policies differ by less than
bfloat16 can represent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..diffusion.schedule import Schedule


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
    sigma, sigma_next = schedule.levels(index, x)
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
    Arguments and errors as `sde_step`; `eta` in 0..1 is the share of noise that is replaced.
    Source: arXiv 2509.05952, released as FlowCPS.
    """
    x, v = latents.float(), velocity.float()
    sigma, sigma_next = schedule.levels(index, x)
    std = sigma_next * math.sin(eta * math.pi / 2)
    kept = sigma_next * math.cos(eta * math.pi / 2)
    mean = (1 - sigma_next) * (x - sigma * v) + kept * (x + (1 - sigma) * v)
    next_latents = _sample(mean, std, noise, next_latents)
    log_prob = -((next_latents.detach() - mean) ** 2).flatten(1).mean(1)
    return Transition(next_latents, mean, std, torch.ones_like(std), log_prob)


DYNAMICS = {"flow_sde": sde_step, "cps": cps_step}
"""The stochastic step of each `rollout.dynamics`."""


def _sample(mean: Tensor, deviation: Tensor, noise: Tensor | None, next_latents: Tensor | None) -> Tensor:
    if (noise is None) == (next_latents is None):
        raise ValueError("give either noise (to sample) or next_latents (to evaluate), not both and not neither")
    given = noise if next_latents is None else next_latents
    if given.shape != mean.shape:
        raise ValueError(
            f"noise or next_latents of shape {tuple(given.shape)} for latents of shape {tuple(mean.shape)}"
        )
    return mean + deviation * noise.float() if next_latents is None else next_latents.float()
