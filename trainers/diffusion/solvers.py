"""Deterministic steps along the ODE: how a video is sampled when nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor

from .schedule import Schedule

SolverName = Literal["euler", "unipc"]
SOLVERS: tuple[SolverName, ...] = get_args(SolverName)


def ode_step(latents: Tensor, velocity: Tensor, schedule: Schedule, index: int | Tensor) -> Tensor:
    """Euler step x + dt v without noise, float32 [B, ...], from step `index` (one for all, or int64 [B]).

    Raises ValueError for a step outside the schedule.
    """
    x = latents.float()
    sigma, sigma_next = schedule.levels(index, x)
    return x + (sigma_next - sigma) * velocity.float()


def make_solver(name: SolverName, schedule: Schedule) -> Callable[[Tensor, Tensor, int], Tensor]:
    """A function of latents, velocity [B, ...] and step index that returns the next latents.

    Call it once per step, in order. `euler`: `ode_step`, the same as ComfyUI's euler. `unipc`: diffusers' UniPC of
    order 2 on our schedule, as the authors of VACE and Phantom sample. On TinyWorld it is as exact as euler with half
    the steps up to a guidance of 4.5, and worse than euler below 30 steps at Phantom's 7.5 and 5. Raises ValueError for
    another name.
    """
    if name == "euler":
        return lambda latents, velocity, index: ode_step(latents, velocity, schedule, index)
    if name != "unipc":
        raise ValueError(f"solver `{name}` is unknown; choose one of {', '.join(SOLVERS)}")
    from diffusers import UniPCMultistepScheduler

    unipc = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    unipc.set_timesteps(len(schedule.timesteps))
    # diffusers' own schedule has changed between its versions.
    unipc.sigmas, unipc.timesteps = schedule.sigmas.cpu(), schedule.timesteps
    unipc.set_begin_index(0)
    return lambda latents, velocity, index: unipc.step(velocity, schedule.timesteps[index], latents, return_dict=False)[
        0
    ]
