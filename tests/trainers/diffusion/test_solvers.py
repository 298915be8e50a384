"""Solvers on an ODE whose solution is known: the straight-line velocity of Gaussian data."""

from __future__ import annotations

import pytest
import torch

from trainers.diffusion.schedule import flow_schedule
from trainers.diffusion.solvers import make_solver, ode_step

SPREAD = 0.5


def solved(name: str, steps: int, noise: torch.Tensor) -> torch.Tensor:
    """Data of deviation SPREAD and mean 0: x_s = (1 - s) data + s noise, so E[noise - data | x] = c(s) x."""
    schedule = flow_schedule(steps, 3.0)
    solve, latents = make_solver(name, schedule), noise * deviation(schedule.sigmas[0])
    for index in range(steps):
        sigma = schedule.sigmas[index]
        velocity = latents * (sigma - (1 - sigma) * SPREAD**2) / deviation(sigma) ** 2
        latents = solve(latents, velocity, index)
    return latents


def deviation(sigma: torch.Tensor) -> torch.Tensor:
    return ((1 - sigma) ** 2 * SPREAD**2 + sigma**2).sqrt()


def error(name: str, steps: int) -> float:
    noise = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    return (solved(name, steps, noise) - noise * SPREAD).abs().max().item()


@pytest.mark.parametrize("name, order", [("euler", 1), ("unipc", 2)])
def test_twice_the_steps_leave_an_error_of_the_solver_s_order(name, order):
    assert error(name, 40) / error(name, 20) == pytest.approx(0.5**order, rel=0.5)


def test_unipc_is_more_exact_with_the_same_steps():
    assert error("unipc", 20) < error("euler", 20) / 4


def test_euler_is_the_ode_step_of_training():
    schedule, latents = flow_schedule(3, 3.0), torch.ones(1, 4)
    assert torch.equal(make_solver("euler", schedule)(latents, -latents, 1), ode_step(latents, -latents, schedule, 1))


def test_an_unknown_solver_names_the_known_ones():
    with pytest.raises(ValueError, match="choose one of euler, unipc"):
        make_solver("heun", flow_schedule(3, 3.0))
