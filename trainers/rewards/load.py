"""The identity reward that a configuration names."""

from __future__ import annotations

from pathlib import Path

import torch

from ..config import TINYWORLD_WEIGHTS, RewardConfig
from .checkpoint import find_base, find_checkpoint
from .identity import IdentityReward


def find_reward(config: RewardConfig) -> tuple[Path, Path]:
    """The folders of the checkpoint and its base model, without loading them.

    Raises UserError when files are missing or a configuration is invalid.
    """
    source = Path(config.source)
    if config.source == "tinyworld":
        source = TINYWORLD_WEIGHTS / "reward" / "identity_reward"
    return source, find_base(find_checkpoint(source), config.base_model)


def load_reward(config: RewardConfig, device: torch.device | str = "cpu") -> IdentityReward:
    """Load the reward that `config` names; `tinyworld` is built in. Raises UserError for missing or broken files."""
    source, base = find_reward(config)
    return IdentityReward.load(source, base, dtype=getattr(torch, config.dtype), device=device)
