"""What an iteration computes: rollouts and rewards, then the updates; every process does its part of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from ..memory.placement import TRANSFORMER
from ..policies.base import VideoSize
from .advantages import combined_advantages
from .plan import Planned, video_cost
from .ranks import Ranks
from .rollout import RolloutBatch, RolloutWorker
from .update import KL_METRICS, METRICS, OFF_POLICY_METRICS, PolicyUpdate


@dataclass(frozen=True)
class Iteration:
    """One process's part of every iteration. `report` gets the phase and the fraction of it that is done."""

    rollouts: RolloutWorker
    update: PolicyUpdate
    ranks: Ranks
    report: Callable[[str, float], None] = lambda phase, done: None

    def collect(self, plan: list[Planned], windows: Sequence[Sequence[int]]) -> tuple[list[list[RolloutBatch]], Tensor]:
        """This process's rollouts of every update, and the rewards of all, float64 [n, rewards] in the plan's order.

        Raises UserError for a reward that is not finite.
        """
        config, items, names = self.rollouts.config, self.rollouts.items, self.rollouts.rewards.names
        video, per_update = config.video, len(plan) // config.rollout.updates_per_iteration
        size = VideoSize(video.height, video.width, video.frames)
        costs = [video_cost(size, len(items[planned.item].references)) for planned in plan]
        # Processes meet in every update: each is balanced by itself.
        own = [
            [start + place for place in self.ranks.slice(costs[start : start + per_update])]
            for start in range(0, len(plan), per_update)
        ]
        updates: list[list[RolloutBatch]] = [[] for _ in own]
        self.report("rollouts", 0.0)
        rewards = torch.full((len(plan), len(names)), math.nan, dtype=torch.float64)
        for index, found in self.ranks.gather_results(lambda: self.rollouts.collect(plan, windows, own, updates)):
            rewards[index] = torch.tensor(found, dtype=torch.float64)
        if not torch.isfinite(rewards).all():
            bad, which = (~torch.isfinite(rewards)).nonzero()[0].tolist()
            raise UserError(
                f"the {names[which]} reward of item `{items[plan[bad].item].id}` (seed {plan[bad].seed}) is "
                f"{rewards[bad, which].item()}; check its reference images and the reward model; the last checkpoint "
                "is intact"
            )
        return updates, rewards

    def learn(
        self, plan: list[Planned], updates: Sequence[Sequence[RolloutBatch]], rewards: Tensor, before: int = 0
    ) -> dict[str, float]:
        """One optimiser step for each update, of which there were `before` until now; returns the metrics.

        Most are of the first update, where the policy is still the one that sampled. How far it has moved since, which
        is nothing there, is of the last.
        """
        config = self.rollouts.config
        groups = [planned.group for planned in plan]
        advantages = combined_advantages(rewards, self.rollouts.rewards.weights, groups, config.optim.global_std)
        terms = len(plan) // len(updates) * config.rollout.window.size
        first = METRICS + KL_METRICS * bool(config.optim.kl)
        totals = dict.fromkeys(first + OFF_POLICY_METRICS, 0.0)
        norms = []
        for number, batches in enumerate(updates):
            names = first * (number == 0) + OFF_POLICY_METRICS * (number == len(updates) - 1)
            for part in self.ranks.gather_results(
                lambda n=number, b=batches: [self._accumulate(n, len(updates), b, advantages, terms)]
            ):
                totals |= {name: totals[name] + part.get(name, 0.0) for name in names}
            norms.append(self.update.step(before + number + 1))
        by_group = advantages.view(-1, config.rollout.group_size)
        return {name: value / terms for name, value in totals.items()} | {
            "grad_norm": sum(norms) / len(norms),
            "groups_without_spread": (by_group == 0).all(1).double().mean().item(),
        }

    def _accumulate(
        self, number: int, count: int, batches: Sequence[RolloutBatch], advantages: Tensor, terms: int
    ) -> dict[str, float]:
        def report(done: float) -> None:
            self.report("update", (number + done) / count)

        report(0.0)
        with self.rollouts.placement.phase("update", TRANSFORMER):
            return self.update.accumulate(
                batches, advantages, terms, self.rollouts.check, report, on_policy=number == 0
            )
