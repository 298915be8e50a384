"""What every rollout of a run is made from, as pure functions of the run's seed.

Nothing here has state: the same (seed, iteration, group, member) names the same item and the same noise on any number of
processes, with any micro-batch, before and after a resume.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import RolloutConfig


@dataclass(frozen=True)
class Planned:
    """One rollout to be made: `item` indexes the prompt set, `seed` makes its noise."""

    group: int
    member: int
    item: int
    seed: int


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts, the same on every platform."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def plan_items(seed: int, iteration: int, groups: int, items: int) -> list[int]:
    """Item of each group of an iteration: the set is walked in shuffled passes, so that items come up equally often."""
    order: dict[int, np.ndarray] = {}
    chosen = []
    for position in range(iteration * groups, (iteration + 1) * groups):
        epoch, index = divmod(position, items)
        if epoch not in order:
            order[epoch] = np.random.default_rng(derive_seed(seed, "items", epoch)).permutation(items)
        chosen.append(int(order[epoch][index]))
    return chosen


def plan_iteration(seed: int, iteration: int, config: RolloutConfig, items: int) -> list[Planned]:
    """All rollouts of an iteration, group by group; update u owns the u-th slice of `groups_per_update` groups."""
    return [
        Planned(group, member, item, derive_seed(seed, "noise", iteration, group, member))
        for group, item in enumerate(plan_items(seed, iteration, config.groups, items))
        for member in range(config.group_size)
    ]


def plan_window(seed: int, iteration: int, config: RolloutConfig) -> range:
    """Steps of an iteration that add noise and are trained.

    `all`: the first `size` steps (the last step of the schedule is better left to the ODE: its noise would stay in the
    video). `random` and `sliding` lie before `window.last`, by default in the noisier half.
    """
    window = config.window
    if window.kind == "all":
        return range(window.size)
    starts = (window.last or config.steps // 2) - window.size + 1
    if window.kind == "random":
        start = int(np.random.default_rng(derive_seed(seed, "window", iteration)).integers(starts))
    else:
        start = iteration // window.slide_every % starts
    return range(start, start + window.size)


def noise_generators(seeds: list[int]) -> list[torch.Generator]:
    """One CPU generator a sample, so that a sample's noise depends neither on its batch nor on the device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw_noise(generators: list[torch.Generator], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """The next unit noise of each sample: float32 [B, *shape]."""
    return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)


def share(count: int, rank: int, processes: int) -> range:
    """The contiguous slice of `count` that process `rank` works on; slices differ by one at most, the first is empty last."""
    return range(-(-count * rank // processes), -(-count * (rank + 1) // processes))
