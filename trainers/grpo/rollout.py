"""Sampling: videos alone, or with what training needs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import RolloutConfig
from ..policies.base import ConditionBatch, Conditions, Guidance, Policy, VideoSize, buckets
from .dynamics import Schedule, Transition, cps_step, flow_schedule, ode_step, sde_step
from .plan import draw_noise, noise_generators
from .solvers import SolverName, make_solver


@dataclass
class Trajectory:
    """The trained part of B rollouts with equal shapes.

    `latents` float32 [B, K+1, C, F, h, w]: states entering the K window steps, and the one after the last.
    `log_probs` float32 [B, K] and `means` (only kept for GRPO-Guard, else None) belong to the policy that sampled.
    """

    window: range
    latents: Tensor
    log_probs: Tensor
    means: Tensor | None
    conditions: list[Conditions]


def transition(
    config: RolloutConfig,
    latents: Tensor,
    velocity: Tensor,
    schedule: Schedule,
    index: int,
    noise: Tensor | None = None,
    next_latents: Tensor | None = None,
) -> Transition:
    """One stochastic step of the configured dynamics: sampled from `noise`, or evaluated at `next_latents`."""
    step = sde_step if config.dynamics == "flow_sde" else cps_step
    return step(latents, velocity, schedule, index, noise=noise, next_latents=next_latents)


def guidance_of(config: RolloutConfig) -> Guidance:
    """The scales that training samples and trains with."""
    return Guidance(config.guidance, config.image_guidance)


def timestep_batch(schedule: Schedule, index: int, count: int) -> Tensor:
    return schedule.timesteps[index].expand(count)


@torch.no_grad()
def roll_out(
    policy: Policy,
    conditions: Sequence[Conditions],
    size: VideoSize,
    config: RolloutConfig,
    schedule: Schedule,
    window: range,
    seeds: Sequence[int],
    keep_means: bool = False,
    check: Callable[[], None] = lambda: None,
) -> tuple[Trajectory, Tensor]:
    """Sample B rollouts whose conditions have equal shapes; `check` is called before every step and may raise to stop.

    Returns the trained part (on the policy's device) and the final latents [B, C, F, h, w].
    """
    batch = policy.batch(conditions)
    generators = noise_generators(list(seeds))
    shape = policy.latent_shape(size, batch.references)
    latents = draw_noise(generators, shape, policy.device)
    guidance = guidance_of(config)
    states, log_probs, means = [], [], []
    for index in range(config.steps):
        check()
        velocity = policy.velocity(latents, timestep_batch(schedule, index, len(seeds)), batch, guidance)
        if index not in window:
            latents = ode_step(latents, velocity, schedule, index)
            continue
        if not states:
            states.append(latents)
        step = transition(
            config, latents, velocity, schedule, index, noise=draw_noise(generators, shape, policy.device)
        )
        latents = step.next_latents
        states.append(latents)
        log_probs.append(step.log_prob)
        if keep_means:
            means.append(step.mean)
    return Trajectory(
        window,
        torch.stack(states, 1),
        torch.stack(log_probs, 1),
        torch.stack(means, 1) if keep_means else None,
        list(conditions),
    ), latents


@torch.no_grad()
def denoise(
    policy: Policy,
    batch: ConditionBatch,
    schedule: Schedule,
    guidance: Guidance,
    latents: Tensor,
    check: Callable[[], None] = lambda: None,
    watch: Callable[[Tensor], None] = lambda _: None,
    solver: SolverName = "euler",
) -> Tensor:
    """Deterministic sampling (ODE) from unit noise [B, C, F, h, w].

    `watch` gets, after every step, what the clean latents are now expected to be.
    """
    solve = make_solver(solver, schedule)
    for index in range(len(schedule.timesteps)):
        check()
        velocity = policy.velocity(latents, timestep_batch(schedule, index, len(latents)), batch, guidance)
        watch(latents - schedule.sigmas[index] * velocity)
        latents = solve(latents, velocity, index)
    return latents


@torch.no_grad()
def sample(
    policy: Policy,
    conditions: Sequence[Conditions],
    size: VideoSize,
    steps: int,
    shift: float,
    guidance: Guidance,
    seeds: Sequence[int],
    micro_batch: int = 8,
    check: Callable[[], None] = lambda: None,
    progress: Callable[[Iterable], Iterable] = iter,
    solver: SolverName = "euler",
) -> Tensor:
    """Videos uint8 [B, F, H, W, 3] by ODE; any mixture of reference counts. Sample i depends on seed i alone."""
    schedule = flow_schedule(steps, shift, policy.device)
    chunks = list(micro_batches(conditions, range(len(conditions)), micro_batch))
    videos: list[Tensor | None] = [None] * len(conditions)
    for chunk in progress(chunks):
        batch = policy.batch([conditions[i] for i in chunk])
        shape = policy.latent_shape(size, batch.references)
        noise = draw_noise(noise_generators([seeds[i] for i in chunk]), shape, policy.device)
        frames = policy.decode(
            denoise(policy, batch, schedule, guidance, noise, check, solver=solver), batch.references
        )
        for i, video in zip(chunk, frames, strict=True):
            videos[i] = video
    return torch.stack([video.cpu() for video in videos]) if videos else torch.zeros(0, dtype=torch.uint8)


def micro_batches(conditions: Sequence[Conditions], indices: Iterable[int], size: int) -> Iterable[list[int]]:
    """Split indices into batches of at most `size` whose conditions have equal shapes."""
    indices = list(indices)
    for members in buckets([conditions[i] for i in indices]).values():
        for start in range(0, len(members), size):
            yield [indices[m] for m in members[start : start + size]]
