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


def combined_advantages(
    rewards: Tensor | np.ndarray,
    weights: Sequence[float],
    groups: Tensor | np.ndarray | Sequence[Hashable],
    global_std: bool = False,
    eps: float = 1e-4,
) -> Tensor:
    """Advantages of several rewards [N, R], each normalised in its groups before they are added; float64 [N].

    sum over rewards of weight * `group_advantages`, divided by (population std of the sums over all N + eps), so that
    neither the units nor the number of the rewards set the size of the update. The mean over all N is 0 already, since
    it is 0 in every group; it is not subtracted, so that a group without spread in any reward stays at exactly 0.
    Where one reward alone has a weight, these are its `group_advantages` to the bit, whatever the weight is.
    Raises ValueError as `group_advantages`, and where no weight is above 0 or their number is not R.
    Source: GDPO (arXiv 2601.05242), with N the batch.
    """
    values = torch.as_tensor(rewards, dtype=torch.float64)
    if values.ndim != 2 or values.shape[1] != len(weights) or not any(weight > 0 for weight in weights):
        raise ValueError(
            f"{len(weights)} weights {list(weights)} for rewards of shape {tuple(values.shape)}; give one weight per "
            "reward, at least one of them above 0"
        )
    used = [
        (weight, group_advantages(column, groups, global_std, eps))
        for weight, column in zip(weights, values.unbind(1), strict=True)
        if weight
    ]
    if len(used) == 1:
        return used[0][1]
    total = sum(weight * advantages for weight, advantages in used)
    return total / (total.std(correction=0) + eps)
