"""What every rollout of a run is made from, as pure functions of the run's seed.

Nothing here has state: the same (seed, iteration, group, member) names the same item and the same noise on any number
of processes, with any micro-batch, before and after a resume.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import RolloutConfig
from ..diffusion.noise import derive_seed
from ..memory.plan import LATENT_FRAMES
from ..policies.base import VideoSize


@dataclass(frozen=True)
class Planned:
    """One rollout to be made: `item` indexes the prompt set, `seed` makes its noise."""

    group: int
    member: int
    item: int
    seed: int


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


def used_items(seed: int, iterations: int, groups: int, items: int) -> list[int]:
    """The items that so many iterations sample, in order of their place in the set."""
    used: set[int] = set()
    for iteration in range(iterations):
        used.update(plan_items(seed, iteration, groups, items))
        if len(used) == items:
            break
    return sorted(used)


def plan_iteration(seed: int, iteration: int, config: RolloutConfig, items: int) -> list[Planned]:
    """All rollouts of an iteration, group by group; update u owns the u-th slice of `groups_per_update` groups."""
    return [
        Planned(group, member, item, derive_seed(seed, "noise", iteration, group, member))
        for group, item in enumerate(plan_items(seed, iteration, config.groups, items))
        for member in range(config.group_size)
    ]


def video_cost(size: VideoSize, references: int) -> int:
    """What sampling or training on a video costs beside others of its size: its latent frames, references included."""
    return 1 + (size.frames - 1) // LATENT_FRAMES + references


def plan_windows(seed: int, iteration: int, config: RolloutConfig) -> list[tuple[int, ...]]:
    """The steps of each group that add noise and are trained, in order; every member of a group has the same.

    `all`: the first `size` steps (the last step of the schedule is better left to the ODE: its noise would stay in the
    video). `random`, `sliding` and `scattered` lie before `window.last`, by default in the noisier half; `scattered`
    steps need not be neighbours. With `per` group every group has another window, else an iteration has one.
    """
    window = config.window
    if window.kind == "all":
        return [tuple(range(window.size))] * config.groups
    last = window.last or config.steps // 2
    starts = last - window.size + 1
    if window.kind == "sliding":
        start = iteration // window.slide_every % starts
        return [tuple(range(start, start + window.size))] * config.groups

    def one(*place: int) -> tuple[int, ...]:
        generator = np.random.default_rng(derive_seed(seed, "window", iteration, *place))
        if window.kind == "scattered":
            return tuple(sorted(generator.choice(last, window.size, replace=False).tolist()))
        start = int(generator.integers(starts))
        return tuple(range(start, start + window.size))

    if window.per == "group":
        return [one(group) for group in range(config.groups)]
    return [one()] * config.groups
