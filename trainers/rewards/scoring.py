"""Rewards of the videos of prompt items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import RewardConfig
from ..prompts import PromptItem

if TYPE_CHECKING:
    from .identity import IdentityReward


def short_clip_warning(clips: Mapping[str, Sequence], read: int) -> str:
    """What to know of the scores of clips [F, …] by name, where `read` frames of each are read; empty if nothing."""
    short = [
        f"{name} has {len(clip)} frame{'s' * (len(clip) != 1)}" for name, clip in clips.items() if len(clip) < read
    ]
    if not short:
        return ""
    return f"{', '.join(short)}, and the reward reads {read}: frames are repeated, so the score is not that of a video"


def score_videos(
    reward: IdentityReward, videos: Sequence[Tensor] | Tensor, items: Sequence[PromptItem], config: RewardConfig
) -> Tensor:
    """Rewards float64 [n] on the CPU of n videos uint8 [F, H, W, 3], `config.micro_batch` at a time.

    Raises UserError naming the item whose reward is not finite.
    """
    references = [item.references for item in items]
    names = [f"the video of item `{item.id}`" for item in items]
    return reward.score(list(videos), references, config.fps, config.micro_batch, names).to("cpu", torch.float64)
