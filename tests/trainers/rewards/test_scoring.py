"""Rewards of the videos of prompt items."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainers.config import RewardConfig
from trainers.errors import UserError
from trainers.prompts import PromptItem
from trainers.rewards.identity import IdentityReward
from trainers.rewards.scoring import score_videos


@pytest.fixture
def items() -> list[PromptItem]:
    generator = torch.Generator().manual_seed(3)
    person = torch.randint(0, 256, (20, 56, 56, 3), dtype=torch.uint8, generator=generator).numpy()
    return [PromptItem(f"row-{i}", "a person waves", (person[i],)) for i in range(20)]


@pytest.fixture
def videos() -> Tensor:
    return torch.randint(0, 256, (20, 5, 28, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(("micro_batch", "sizes"), [(16, [16, 4]), (3, [3] * 6 + [2]), (32, [20])])
def test_the_model_gets_a_micro_batch_of_clips_at_once(
    reward: IdentityReward, videos: Tensor, items: list[PromptItem], micro_batch: int, sizes: list[int]
) -> None:
    """A default of 8 once replaced every larger setting."""
    seen = []
    reward.model.register_forward_pre_hook(lambda model, given: seen.append(len(given[0].ids)))
    found = score_videos(reward, videos, items, RewardConfig(micro_batch=micro_batch))
    assert seen == sizes
    assert found.dtype == torch.float64 and found.shape == (20,)


def test_scores_are_those_of_each_video_with_its_own_references(
    reward: IdentityReward, videos: Tensor, items: list[PromptItem]
) -> None:
    found = score_videos(reward, videos[:3], items[:3], RewardConfig(fps=8.0, micro_batch=3))
    alone = [reward.score([videos[i]], [items[i].references], fps=8.0).item() for i in range(3)]
    assert found.tolist() == pytest.approx(alone, abs=1e-5)


def test_a_reward_that_is_not_finite_names_the_item(
    reward: IdentityReward, videos: Tensor, items: list[PromptItem]
) -> None:
    reward.model.forward = lambda batch: torch.tensor([0.5, float("nan")])
    with pytest.raises(UserError, match="video of item `row-1` is nan"):
        score_videos(reward, videos[:2], items[:2], RewardConfig(micro_batch=2))


def test_a_missing_reference_is_named(reward: IdentityReward, videos: Tensor, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nobody.png does not exist"):
        score_videos(reward, videos[:1], [PromptItem("a", "b", (tmp_path / "nobody.png",))], RewardConfig())
