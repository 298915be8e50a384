import numpy as np
import pytest
import torch

from trainers.diffusion.schedule import flow_schedule
from trainers.grpo.losses import ClippedLoss, GuardLoss, kl_divergence
from trainers.grpo.sde import Transition, cps_step, sde_step

SHAPE = (4, 3, 2, 6, 5)
CLIPPED, GUARD = ClippedLoss(1e-3, 5.0), GuardLoss(2e-6, 5.0)


def at(log_prob: torch.Tensor) -> Transition:
    """A transition of which only the log-probability counts."""
    return Transition(*[torch.zeros(0)] * 4, log_prob)


def randoms(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=generator) for _ in range(4)]


def test_policy_loss_is_the_float64_formula():
    log_prob = torch.tensor([0.1, 0.1004, 0.1015, 0.0985, 0.2])
    old = torch.full((5,), 0.1)
    advantages = torch.tensor([1.0, 2.0, 9.0, -9.0, -0.5], dtype=torch.float64)
    loss, metrics = CLIPPED.compute(at(log_prob), old, advantages)
    ratio = metrics["ratio"]
    r = np.exp(log_prob.double().numpy() - old.double().numpy())
    a = np.clip(advantages.numpy(), -5, 5)
    expected = [max(-ai * ri, -ai * min(max(ri, 0.999), 1.001)) for ai, ri in zip(a, r, strict=True)]
    np.testing.assert_allclose(ratio.numpy(), r, atol=1e-6)
    np.testing.assert_allclose(loss.numpy(), expected, atol=2e-6)
    assert loss.dtype == torch.float32


def test_a_clipped_gain_has_no_gradient_and_a_clipped_loss_has():
    log_prob = torch.tensor([0.01, 0.01], requires_grad=True)
    loss, _ = CLIPPED.compute(at(log_prob), torch.zeros(2), torch.tensor([1.0, -1.0]))
    loss.sum().backward()
    assert log_prob.grad[0] == 0
    assert log_prob.grad[1] > 0


@pytest.mark.parametrize("dynamics", [sde_step, cps_step])
def test_ratio_of_an_unchanged_policy_is_exactly_one(dynamics):
    x, v, noise, _ = randoms()
    schedule = flow_schedule(8, 3.0)
    for i in range(7):
        old = dynamics(x, v, schedule, i, noise=noise)
        now = dynamics(x, v, schedule, i, next_latents=old.next_latents)
        _, metrics = CLIPPED.compute(now, old.log_prob, torch.ones(4))
        assert torch.equal(metrics["ratio"], torch.ones(4))


def test_guarded_ratio_of_an_unchanged_policy_is_exactly_one():
    x, v, noise, _ = randoms()
    schedule = flow_schedule(8, 3.0)
    for i in range(8):
        old = sde_step(x, v, schedule, i, noise=noise)
        now = sde_step(x, v, schedule, i, next_latents=old.next_latents)
        _, metrics = GUARD.compute(now, old.log_prob, torch.ones(4), old.mean)
        assert torch.equal(metrics["ratio"], torch.ones(4))


def test_guarded_log_ratio_is_the_mean_of_shift_times_noise():
    x, v, noise, other = randoms()
    schedule = flow_schedule(8, 3.0)
    for i in (0, 4, 7):
        old = sde_step(x, v, schedule, i, noise=noise)
        now = sde_step(x, v + 0.3 * other, schedule, i, next_latents=old.next_latents)
        found = GUARD.log_ratio(now, old.log_prob, old.mean)
        expected = ((now.mean - old.mean).double() * noise.double()).flatten(1).mean(1)
        torch.testing.assert_close(found.double(), expected, atol=3e-7, rtol=1e-4)


def test_kl_is_the_gaussians_divergence():
    x, v, noise, other = randoms()
    schedule = flow_schedule(8, 3.0)
    now, base = (sde_step(x, velocity, schedule, 3, noise=noise) for velocity in (v, v + 0.1 * other))
    deviation = (now.std * now.sqrt_neg_dt).double()
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(now.mean.double(), deviation), normal(base.mean.double(), deviation)
    )
    found = kl_divergence(now, base.mean)
    torch.testing.assert_close(found.double(), expected.flatten(1).mean(1), rtol=1e-5, atol=0)


def test_defect_16_kl_averages_over_every_axis_of_any_layout():
    mean, mean_ref, _, _ = randoms()
    std, root = torch.full((4, 1, 1, 1, 1), 0.5), torch.full((4, 1, 1, 1, 1), 0.2)
    empty = torch.zeros(0)
    video = kl_divergence(Transition(empty, mean, std, root, empty), mean_ref)
    flattened = (tensor.flatten(1) for tensor in (mean, std, root))
    flat = kl_divergence(Transition(empty, *flattened, empty), mean_ref.flatten(1))
    assert video.shape == (4,)
    torch.testing.assert_close(video, flat)


def gradient_sizes(shift, guard):
    x, v, noise, _ = randoms()
    schedule = flow_schedule(25, shift)
    sizes = []
    for i in range(24):
        velocity = v.clone().requires_grad_(True)
        old = sde_step(x, v, schedule, i, noise=noise)
        now = sde_step(x, velocity, schedule, i, next_latents=old.next_latents)
        objective = (GuardLoss if guard else ClippedLoss)(1e-3, 5.0)
        loss, _ = objective.compute(now, old.log_prob, torch.ones(4), old.mean)
        loss.mean().backward()
        sizes.append(velocity.grad.norm().item())
    return np.array(sizes)


@pytest.mark.parametrize(("shift", "spread"), [(3.0, 13.8), (5.0, 14.5)])
def test_defect_20_guard_lets_every_step_pull_alike(shift, spread):
    plain, guarded = gradient_sizes(shift, False), gradient_sizes(shift, True)
    assert plain.max() / plain.min() == pytest.approx(spread, rel=0.02)
    assert guarded.max() / guarded.min() < 1.13


def test_metrics_show_the_size_of_the_update():
    log_ratio = torch.tensor([0.0, 5e-4, 2e-3, -2e-3], requires_grad=True)
    _, seen = CLIPPED.compute(at(log_ratio), torch.zeros(4), torch.ones(4))
    assert seen["clipfrac"].tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(seen["approx_kl"], torch.tensor([0, 1.25e-7, 2e-6, 2e-6]))
    assert not seen["approx_kl"].requires_grad
