"""How a video is drawn when nothing is trained: steps along the ODE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor

from .dynamics import Schedule, ode_step

SolverName = Literal["euler", "unipc"]
SOLVERS: tuple[SolverName, ...] = get_args(SolverName)


def make_solver(name: SolverName, schedule: Schedule) -> Callable[[Tensor, Tensor, int], Tensor]:
    """A function of latents, velocity [B, ...] and step index: the next latents. To be called once for every step in order.

    `euler`: `ode_step`, as evaluation and ComfyUI's euler. `unipc`: diffusers' UniPC of order 2 on our schedule, as the
    authors of VACE and Phantom sample. On TinyWorld it is as exact with half the steps up to a guidance of 4.5, and worse than
    euler below 30 steps at Phantom's 7.5 and 5. Raises ValueError for another name.
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
