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
def sample_latents(
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
) -> Iterator[tuple[list[int], Tensor, int]]:
    """Sample clean latents by the ODE, with any numbers of references. Sample i depends on seed i alone.

    Yields for each micro-batch which samples it has, their latents [n, C, F, h, w] and their number of references.
    Raises UserError when latents are not finite.
    """
    schedule = flow_schedule(steps, shift, policy.device)
    for chunk in progress(list(micro_batches(dict(enumerate(conditions)), micro_batch))):
        batch = policy.batch([conditions[i] for i in chunk])
        shape = policy.latent_shape(size, batch.references)
        noise = unit_noise(noise_generators([seeds[i] for i in chunk]), shape, policy.device)
        yield chunk, denoise(policy, batch, schedule, guidance, noise, check, solver=solver), batch.references


def decode_videos(policy: Policy, sampled: Iterable[tuple[list[int], Tensor, int]]) -> Iterator[tuple[int, Tensor]]:
    """Each sample of `sample_latents` with its video uint8 [F, H, W, 3], on the CPU. Raises UserError when pixels are
    not finite.
    """
    for chunk, latents, references in sampled:
        yield from zip(chunk, policy.decode(latents, references).cpu(), strict=True)


def sample_videos(policy: Policy, conditions: Sequence[Conditions], size: VideoSize, *settings, **options) -> Tensor:
    """Videos uint8 [B, F, H, W, 3] on the CPU, sampled and decoded; arguments and errors are those of `sample_latents`
    and `decode_videos`.
    """
    return stack_videos(decode_videos(policy, sample_latents(policy, conditions, size, *settings, **options)))


def stack_videos(videos: Iterable[tuple[int, Tensor]]) -> Tensor:
    """Numbered videos of equal shapes in order, as one tensor."""
    found = dict(videos)
    return torch.stack([found[i] for i in range(len(found))]) if found else torch.zeros(0, dtype=torch.uint8)


def micro_batches(conditions: Mapping[int, Conditions], size: int) -> Iterator[list[int]]:
    """The keys of `conditions` in batches of at most `size` whose conditions have equal shapes."""
    keys = list(conditions)
    for members in buckets([conditions[key] for key in keys]).values():
        for start in range(0, len(members), size):
            yield [keys[m] for m in members[start : start + size]]
