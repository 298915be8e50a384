"""Tiny rewards of the real class, and pictures to score."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainers.rewards.identity import Collator, IdentityReward, open_base


@pytest.fixture
def released(repository: Path, tmp_path: Path) -> Path:
    """A copy of the golden case's `base_model` and `identity_reward` that a test may change."""
    source = repository / "tests" / "golden" / "identity_reward"
    for part in ("base_model", "identity_reward"):
        shutil.copytree(source / part, tmp_path / part)
    return tmp_path


@pytest.fixture
def reward(base_model: Path) -> IdentityReward:
    """A reward with random weights, the same ones in every test."""
    torch.manual_seed(0)
    model, sequencer = open_base(base_model, torch.float32)
    return IdentityReward(model.requires_grad_(False), Collator(sequencer))


@pytest.fixture
def clips() -> list[Tensor]:
    """Three clips, two of one size and one of another: uint8 [F, H, W, 3]."""
    generator = torch.Generator().manual_seed(1)
    sizes = [(9, 48, 80, 3), (9, 48, 80, 3), (5, 60, 40, 3)]
    return [torch.randint(0, 256, size, dtype=torch.uint8, generator=generator) for size in sizes]


@pytest.fixture
def references() -> list[list[Tensor]]:
    """References for the clips, one to three of several sizes: uint8 [H, W, 3]."""
    generator = torch.Generator().manual_seed(2)

    def image(height: int, width: int) -> Tensor:
        return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)

    return [[image(84, 84), image(61, 90)], [image(84, 84)], [image(56, 56), image(84, 84), image(30, 33)]]
