"""From a configuration's reward section to a reward."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..config import TINYWORLD_WEIGHTS, RewardConfig
from .checkpoint import find_base, find_checkpoint

if TYPE_CHECKING:
    import torch

    from .identity import IdentityReward


def find_reward(config: RewardConfig) -> tuple[Path, Path]:
    """The folders of the checkpoint and its base model, without loading them. Raises UserError when files are missing."""
    source = Path(config.source)
    if config.source == "tinyworld":
        source = TINYWORLD_WEIGHTS / "reward" / "identity_reward"
    return source, find_base(find_checkpoint(source), config.base_model)


def load_reward(config: RewardConfig, device: torch.device | str = "cpu") -> IdentityReward:
    """The identity reward that the configuration names; `tinyworld` is the built-in one. Raises UserError as `find_reward`."""
    import torch

    from .identity import IdentityReward

    source, base = find_reward(config)
    return IdentityReward.load(source, base, dtype=getattr(torch, config.dtype), device=device)
