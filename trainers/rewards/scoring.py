"""Rewards of the videos of prompt items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import RewardConfig
from ..prompts import PromptItem

if TYPE_CHECKING:
    from .identity import IdentityReward


def score_videos(
    reward: IdentityReward, videos: Sequence[Tensor] | Tensor, items: Sequence[PromptItem], config: RewardConfig
) -> Tensor:
    """Rewards float64 [n] on the CPU of n videos uint8 [F, H, W, 3], `config.micro_batch` at a time.

    Raises UserError naming the item whose reward is not finite.
    """
    references = [item.references for item in items]
    names = [f"the video of item `{item.id}`" for item in items]
    return reward.score(list(videos), references, config.fps, config.micro_batch, names).to("cpu", torch.float64)
