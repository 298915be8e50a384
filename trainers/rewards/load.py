"""The identity reward that a configuration names."""

from __future__ import annotations

import torch

from ..config import RewardConfig
from .folder import find_reward
from .identity import IdentityReward


def load_reward(config: RewardConfig, device: torch.device | str = "cpu") -> IdentityReward:
    """Load the reward that `config` names; `tinyworld` is built in. Raises UserError for missing or broken files."""
    source, base = find_reward(config)
    return IdentityReward.load(source, base, dtype=getattr(torch, config.dtype), device=device)
