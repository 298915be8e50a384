"""From rewards to advantages."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor


def group_advantages(
    rewards: Tensor | np.ndarray | Sequence[float],
    groups: Tensor | np.ndarray | Sequence[Hashable],
    global_std: bool = False,
    eps: float = 1e-4,
) -> Tensor:
    """(reward - mean of its group) / (population std + eps), float64 [N] on the CPU.

    rewards: [N]; groups: [N] ids of the prompt items (not their texts: two items may share a text and differ in
    people). The std is the group's own or, with `global_std`, that of all N rewards. A group of one, or of equal
    rewards, says nothing: it gets exactly 0 and keeps its place.
    Raises ValueError when the lengths differ or a reward is not finite (the index is named).
    Source: DeepSeekMath's GRPO (arXiv 2402.03300), constants of identity-grpo's `PerPromptStatTracker`.
    """
    values = np.asarray(torch.as_tensor(rewards).detach().cpu(), dtype=np.float64)
    ids = groups.tolist() if isinstance(groups, (Tensor, np.ndarray)) else list(groups)
    if values.shape != (len(ids),):
        raise ValueError(f"{len(ids)} group ids for rewards of shape {values.shape}; give one id per reward")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(f"reward {bad[0]} is {values[bad[0]]}: rewards must be finite")
    members: dict[Hashable, list[int]] = {}
    for place, group in enumerate(ids):
        members.setdefault(group, []).append(place)
    advantages = np.zeros_like(values)
    for places in members.values():
        own = values[places]
        if own.min() != own.max():
            spread = values.std() if global_std else own.std()
            advantages[places] = (own - own.mean()) / (spread + eps)
    return torch.from_numpy(advantages)
