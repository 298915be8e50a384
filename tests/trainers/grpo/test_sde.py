from pathlib import Path

import numpy as np
import pytest
import torch

from trainers.diffusion.schedule import flow_schedule
from trainers.diffusion.solvers import ode_step
from trainers.grpo.sde import cps_step, sde_step
from trainers.parity.sde import verify_case

GOLDEN = Path(__file__).parents[2] / "golden" / "sde"
SHAPE = (3, 4, 2, 3, 5)


def draw(seed=0, shape=SHAPE):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for _ in range(3))


def reference_sde(x, v, noise, sigmas, i):
    """Flow-SDE in float64, written from the SDE: dx = (v + std^2/(2 s) (x + (1 - s) v)) dt + std dw."""
    x, v, noise = (t.double().numpy() for t in (x, v, noise))
    s, dt = sigmas[i], sigmas[i + 1] - sigmas[i]
    std = sigmas[-1] + (sigmas[1] - sigmas[-1]) * s
    mean = x + (v + std**2 / (2 * s) * (x + (1 - s) * v)) * dt
    deviation = std * np.sqrt(-dt)
    following = mean + deviation * noise
    density = torch.distributions.Normal(torch.from_numpy(mean), deviation).log_prob(torch.from_numpy(following))
    return mean, following, density.flatten(1).mean(1)


def test_golden_kit_is_reproduced():
    results = verify_case(GOLDEN)
    assert len(results) > 150
    assert [r for r in results if not r.ok] == []


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
@pytest.mark.parametrize("steps", [2, 7, 25])
def test_sde_step_is_the_float64_formula(shift, steps):
    x, v, noise = draw()
    linear = np.linspace(0, 0.999, steps + 1)
    sigmas = np.append((shift * linear / (1 + (shift - 1) * linear))[::-1][:-1], 0.0)
    schedule = flow_schedule(steps, shift)
    for i in range(steps):
        mean, following, log_prob = reference_sde(x, v, noise, sigmas, i)
        step = sde_step(x, v, schedule, i, noise=noise)
        torch.testing.assert_close(step.mean.double(), torch.from_numpy(mean), atol=2e-6, rtol=2e-6)
        torch.testing.assert_close(step.next_latents.double(), torch.from_numpy(following), atol=2e-6, rtol=2e-6)
        torch.testing.assert_close(step.log_prob.double(), log_prob, atol=5e-6, rtol=5e-6)


@pytest.mark.parametrize("step", [sde_step, cps_step])
@pytest.mark.parametrize("index", [0, 3, 7])
def test_density_of_a_drawn_sample_is_the_same_when_evaluated(step, index):
    x, v, noise = draw()
    schedule = flow_schedule(9, 3.0)
    drawn = step(x, v, schedule, index, noise=noise)
    judged = step(x, v, schedule, index, next_latents=drawn.next_latents)
    assert torch.equal(drawn.log_prob, judged.log_prob)
    assert torch.equal(drawn.mean, judged.mean)


@pytest.mark.parametrize("step", [sde_step, cps_step])
def test_samples_may_stand_at_different_steps(step):
    x, v, noise = draw()
    schedule = flow_schedule(9, 3.0)
    mixed = step(x, v, schedule, torch.tensor([6, 0, 3]), noise=noise)
    for place, index in enumerate([6, 0, 3]):
        alone = step(x[place : place + 1], v[place : place + 1], schedule, index, noise=noise[place : place + 1])
        assert torch.equal(mixed.next_latents[place : place + 1], alone.next_latents)
        torch.testing.assert_close(mixed.log_prob[place], alone.log_prob[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("step", [sde_step, cps_step])
def test_gradient_flows_through_the_mean_alone(step):
    x, v, noise = draw()
    v.requires_grad_(True)
    schedule = flow_schedule(9, 3.0)
    drawn = step(x, v, schedule, 4, noise=noise)
    drawn.log_prob.sum().backward()
    from_drawn, v.grad = v.grad, None
    step(x, v, schedule, 4, next_latents=drawn.next_latents.detach()).log_prob.sum().backward()
    assert from_drawn.abs().max() > 0
    assert torch.equal(from_drawn, v.grad)


@pytest.mark.parametrize("step", [sde_step, cps_step])
def test_half_precision_inputs_are_computed_in_float32(step):
    x, v, noise = (t.bfloat16() for t in draw())
    schedule = flow_schedule(9, 3.0)
    half = step(x, v, schedule, 2, noise=noise)
    full = step(x.float(), v.float(), schedule, 2, noise=noise.float())
    assert half.next_latents.dtype == half.log_prob.dtype == torch.float32
    assert torch.equal(half.next_latents, full.next_latents)
    assert ode_step(x, v, schedule, 2).dtype == torch.float32


def test_ode_step_is_euler():
    x, v, _ = draw()
    schedule = flow_schedule(9, 3.0)
    expected = x + (schedule.sigmas[4] - schedule.sigmas[3]) * v
    assert torch.equal(ode_step(x, v, schedule, 3), expected)


def test_ode_follows_a_straight_path_to_the_data():
    data, noise, _ = draw()
    schedule = flow_schedule(6, 3.0)
    x = (1 - schedule.sigmas[0]) * data + schedule.sigmas[0] * noise
    for i in range(6):
        x = ode_step(x, noise - data, schedule, i)
    torch.testing.assert_close(x, data, atol=1e-5, rtol=0)


def test_defect_11_steps_with_equal_timesteps_are_told_apart():
    schedule = flow_schedule(3000, 3.0)
    times = schedule.timesteps.tolist()
    twin = next(i for i in range(2999) if times[i] == times[i + 1])
    x, v, noise = draw()
    assert not torch.equal(
        sde_step(x, v, schedule, twin, noise=noise).mean, sde_step(x, v, schedule, twin + 1, noise=noise).mean
    )


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
def test_defect_11_first_noise_level_is_below_one(shift):
    schedule = flow_schedule(25, shift)
    assert schedule.sigmas[0] < 1
    x, v, noise = draw()
    assert torch.isfinite(sde_step(x, v, schedule, 0, noise=noise).log_prob).all()


@pytest.mark.parametrize(("shift", "left"), [(3.0, 0.037), (5.0, 0.072)])
def test_defect_12_an_ode_tail_leaves_no_noise_where_flow_sde_does(shift, left):
    data, x1, noise = draw(shape=(2, 4, 8, 16, 16))
    schedule = flow_schedule(25, shift)
    x = (1 - schedule.sigmas[24]) * data + schedule.sigmas[24] * x1
    noisy = sde_step(x, x1 - data, schedule, 24, noise=noise)
    deviation = float((noisy.std * noisy.sqrt_neg_dt).flatten()[0])
    assert deviation == pytest.approx(left, abs=1.5e-3)
    assert (noisy.next_latents - data).std() > 0.9 * left
    torch.testing.assert_close(ode_step(x, x1 - data, schedule, 24), data, atol=1e-5, rtol=0)
    torch.testing.assert_close(cps_step(x, x1 - data, schedule, 24, noise=noise).next_latents, data, atol=1e-5, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.8, 1.0])
def test_cps_keeps_the_noise_level_of_the_schedule(eta):
    data, x1, _ = draw()
    schedule = flow_schedule(9, 3.0)
    for i in range(8):
        s, following = schedule.sigmas[i], schedule.sigmas[i + 1]
        step = cps_step((1 - s) * data + s * x1, x1 - data, schedule, i, noise=torch.zeros_like(data), eta=eta)
        kept = (step.mean - (1 - following) * data) / x1
        level = (kept**2 + step.std**2).sqrt()
        torch.testing.assert_close(level, following.expand_as(level), atol=2e-3, rtol=0)


def test_cps_without_new_noise_is_the_ode():
    x, v, noise = draw()
    schedule = flow_schedule(9, 3.0)
    torch.testing.assert_close(
        cps_step(x, v, schedule, 3, noise=noise, eta=0.0).next_latents, ode_step(x, v, schedule, 3), atol=2e-6, rtol=0
    )


def test_cps_density_is_the_negative_squared_distance():
    x, v, noise = draw()
    step = cps_step(x, v, flow_schedule(9, 3.0), 3, noise=noise)
    expected = -(step.std.double() ** 2).flatten() * (noise.double() ** 2).flatten(1).mean(1)
    torch.testing.assert_close(step.log_prob.double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("step", [sde_step, cps_step])
def test_noise_and_next_latents_exclude_each_other(step):
    x, v, noise = draw()
    schedule = flow_schedule(4, 3.0)
    with pytest.raises(ValueError, match="either noise"):
        step(x, v, schedule, 0)
    with pytest.raises(ValueError, match="either noise"):
        step(x, v, schedule, 0, noise=noise, next_latents=noise)


@pytest.mark.parametrize("index", [-1, 4, torch.tensor([0, 4, 1])])
def test_a_step_outside_the_schedule_is_refused(index):
    x, v, noise = draw()
    with pytest.raises(ValueError, match="outside the 4 steps"):
        sde_step(x, v, flow_schedule(4, 3.0), index, noise=noise)


def test_noise_of_another_shape_is_refused_not_broadcast():
    x, v, noise = draw()
    with pytest.raises(ValueError, match="shape"):
        sde_step(x, v, flow_schedule(4, 3.0), 0, noise=noise[:1])


@pytest.mark.parametrize(("steps", "shift"), [(0, 3.0), (4, 0.0), (4, -1.0)])
def test_an_impossible_schedule_is_refused(steps, shift):
    with pytest.raises(ValueError, match="schedule"):
        flow_schedule(steps, shift)
