"""Motion is what changes its place; noise and a flickering light are not."""

from __future__ import annotations

import pytest
import torch

from trainers.rewards.motion import motion_energy, motion_left


def moving(pixels: int, frames: int = 6, height: int = 96, width: int = 160) -> torch.Tensor:
    """A white square that moves so many pixels from one frame to the next."""
    video = torch.full((frames, height, width, 3), 60, dtype=torch.uint8)
    for number in range(frames):
        video[number, 30:60, 20 + pixels * number : 50 + pixels * number] = 230
    return video


def test_a_still_video_has_none():
    assert motion_energy(moving(0)) == 0.0
    assert motion_energy(moving(3)[:1]) == 0.0


def test_faster_is_more():
    assert 0 < motion_energy(moving(2)) < motion_energy(moving(6))


def test_noise_counts_little_and_a_flickering_light_nothing():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(-12, 13, (6, 96, 160, 3), generator=generator)
    noisy = (moving(0).int() + noise).clamp(0, 255).to(torch.uint8)
    light = torch.tensor([0, 20, 0, 20, 0, 20])[:, None, None, None]
    flickering = (moving(0).int() + light).to(torch.uint8)
    assert motion_energy(noisy) < 0.25 * motion_energy(moving(3))
    assert motion_energy(flickering) < 1e-6


def test_what_is_left_is_a_part_of_the_base_policy_s_and_at_most_1():
    base = motion_energy(moving(4))
    videos = [moving(0), moving(1), moving(4), moving(9)]
    still, slow, same, fast = motion_left(videos, [base] * 4, enough=0.8)
    assert still == 0.0 and 0 < slow < 1 and same == fast == 1.0
    assert slow == pytest.approx(motion_energy(moving(1)) / (0.8 * base))


def test_where_the_base_policy_stands_still_nothing_is_lost():
    assert motion_left([moving(0)], [0.0], 0.8) == [1.0]
