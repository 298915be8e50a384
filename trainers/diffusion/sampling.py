"""Sampling videos with any policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..errors import UserError
from ..policies.base import OVERFLOW_REMEDY, ConditionBatch, Conditions, Guidance, Policy, VideoSize, buckets
from ..policies.fp8 import fast_products
from .noise import noise_generators, unit_noise
from .schedule import Schedule, flow_schedule
from .solvers import SolverName, make_solver


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
    """Denoise unit noise [B, C, F, h, w] to clean latents of the same shape, deterministically (ODE).

    `check` is called before every step and may raise to stop; `watch` gets, after every step, the current estimate of
    the clean latents. Raises UserError when the latents are not finite at the end.
    """
    solve = make_solver(solver, schedule)
    # Counted on the device and read once at the end: reading waits for the device.
    finite_steps = torch.zeros((), dtype=torch.int64, device=latents.device)
    for index in range(schedule.steps):
        check()
        with fast_products(policy.transformer):
            velocity = policy.velocity(latents, schedule.timestep_batch(index, len(latents)), batch, guidance)
        watch(latents - schedule.sigmas[index] * velocity)
        latents = solve(latents, velocity, index)
        finite_steps += latents.isfinite().all()
    if finite_steps < schedule.steps:
        raise UserError(
            f"the latents are not finite (NaN or infinity) from denoising step {int(finite_steps) + 1} of "
            f"{schedule.steps}; {OVERFLOW_REMEDY}"
        )
    return latents


@torch.no_grad()
def sample_videos(
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
    """Sample videos uint8 [B, F, H, W, 3] by the ODE, with any numbers of references. Sample i depends on seed i alone.

    Raises UserError when latents or pixels are not finite.
    """
    schedule = flow_schedule(steps, shift, policy.device)
    chunks = list(micro_batches(dict(enumerate(conditions)), micro_batch))
    videos: list[Tensor | None] = [None] * len(conditions)
    for chunk in progress(chunks):
        batch = policy.batch([conditions[i] for i in chunk])
        shape = policy.latent_shape(size, batch.references)
        noise = unit_noise(noise_generators([seeds[i] for i in chunk]), shape, policy.device)
        latents = denoise(policy, batch, schedule, guidance, noise, check, solver=solver)
        for i, video in zip(chunk, policy.decode(latents, batch.references), strict=True):
            videos[i] = video
    return torch.stack([video.cpu() for video in videos]) if videos else torch.zeros(0, dtype=torch.uint8)


def micro_batches(conditions: Mapping[int, Conditions], size: int) -> Iterator[list[int]]:
    """The keys of `conditions` in batches of at most `size` whose conditions have equal shapes."""
    keys = list(conditions)
    for members in buckets([conditions[key] for key in keys]).values():
        for start in range(0, len(members), size):
            yield [keys[m] for m in members[start : start + size]]
