"""Denoising with a policy, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from trainers.diffusion.sampling import denoise, sample_videos
from trainers.diffusion.schedule import flow_schedule
from trainers.errors import UserError
from trainers.policies.base import Conditions, Guidance, VideoSize
from trainers.policies.load import load_policy

STEPS = 4


def policy_of(velocities):
    """A stand-in whose velocity at each step is this number everywhere."""
    left = iter(velocities)
    return SimpleNamespace(
        velocity=lambda latents, *_: torch.full_like(latents, next(left)), transformer=torch.nn.Module()
    )


def run(velocities, **options):
    noise = torch.ones(2, 3, 1, 2, 2)
    return denoise(policy_of(velocities), None, flow_schedule(STEPS, 3.0), Guidance(), noise, **options)


def test_the_latents_follow_the_velocity_from_the_first_noise_level_to_zero():
    sigma = flow_schedule(STEPS, 3.0).sigmas[0].item()
    torch.testing.assert_close(run([2.0] * STEPS), torch.full((2, 3, 1, 2, 2), 1 - 2 * sigma))


def test_watch_gets_the_expected_clean_latents_after_every_step():
    seen = []
    run([2.0] * STEPS, watch=seen.append)
    # Along a straight line the expected end is the same at every step.
    for latents in seen:
        torch.testing.assert_close(latents, seen[0])
    assert len(seen) == STEPS


def test_check_can_stop_before_any_step():
    calls = []

    def check():
        calls.append(None)
        if len(calls) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run([0.0] * STEPS, check=check)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("step", [1, 3, STEPS])
def test_latents_that_are_not_finite_are_refused_with_the_step_where_it_began(value, step):
    velocities = [0.0] * STEPS
    velocities[step - 1] = value
    with pytest.raises(UserError, match=rf"not finite .*from denoising step {step} of 4; lower the LoRA's strength"):
        run(velocities)


def test_one_video_of_a_batch_that_is_not_finite_is_enough():
    def velocity(latents, *_):
        changed = torch.zeros_like(latents)
        changed[1, 2, 0, 1, 1] = float("nan")
        return changed

    policy = SimpleNamespace(velocity=velocity, transformer=torch.nn.Module())
    with pytest.raises(UserError, match="from denoising step 1 of 4"):
        denoise(policy, None, flow_schedule(STEPS, 3.0), Guidance(), torch.ones(2, 3, 1, 2, 2))


def test_a_model_with_damaged_weights_makes_no_video():
    policy, size = load_policy("tinyworld"), VideoSize(48, 80, 5)
    policy.transformer.blocks[2].attn1.to_v.weight.data[0, 0] = float("nan")
    _, frames, height, width = policy.clip_shape(size)
    text = torch.zeros(policy.text.length, policy.transformer.config.text_dim)
    conditions = Conditions(text, text, torch.zeros(96, frames, height, width), 0)
    with pytest.raises(UserError, match=r"from denoising step 1 of 2.*weights of the model are damaged"):
        sample_videos(policy, [conditions], size, steps=2, shift=3.0, guidance=Guidance(), seeds=[0])
