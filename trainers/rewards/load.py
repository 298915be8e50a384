"""From a configuration's reward section to a reward."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..config import RewardConfig

if TYPE_CHECKING:
    import torch

    from .identity import IdentityReward


def load_reward(config: RewardConfig, device: torch.device | str = "cpu") -> IdentityReward:
    """The identity reward named by the configuration; `tinyworld` is the built-in one. Raises UserError when files are missing."""
    import torch

    from .identity import IdentityReward

    source = Path(config.source)
    if config.source == "tinyworld":
        from ..tinyworld.models import WEIGHTS

        source = WEIGHTS / "reward" / "identity_reward"
    return IdentityReward.load(source, config.base_model, dtype=getattr(torch, config.dtype), device=device)
