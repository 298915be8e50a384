"""Rollouts: sampled videos with what training needs of them, and their rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..config import RolloutConfig, TrainConfig
from ..diffusion.noise import noise_generators, unit_noise
from ..diffusion.sampling import micro_batches
from ..diffusion.schedule import Schedule
from ..diffusion.solvers import ode_step
from ..policies.base import Conditions, Guidance, Policy, VideoSize
from ..prompts import PromptItem
from .evaluate import score_videos
from .plan import Planned
from .sde import DYNAMICS


@dataclass(frozen=True)
class RolloutBatch:
    """The trained part of B rollouts with equal shapes.

    `latents` float32 [B, K+1, C, F, h, w]: states entering the K window steps, and the one after the last.
    `log_probs` float32 [B, K] and `means` (only kept for GRPO-Guard, else None) belong to the policy that sampled.
    `members`: places of the rollouts in the iteration's plan.
    """

    window: range
    latents: Tensor
    log_probs: Tensor
    means: Tensor | None
    conditions: list[Conditions]
    members: list[int]

    def __len__(self) -> int:
        return len(self.latents)

    def to(self, device: torch.device | str) -> RolloutBatch:
        means = None if self.means is None else self.means.to(device)
        return replace(self, latents=self.latents.to(device), log_probs=self.log_probs.to(device), means=means)

    def __getitem__(self, part: slice) -> RolloutBatch:
        return replace(
            self,
            latents=self.latents[part],
            log_probs=self.log_probs[part],
            means=None if self.means is None else self.means[part],
            conditions=self.conditions[part],
            members=self.members[part],
        )


def training_guidance(config: RolloutConfig) -> Guidance:
    """The scales that training samples and trains with."""
    return Guidance(config.guidance, config.image_guidance)


@torch.no_grad()
def roll_out(
    policy: Policy,
    conditions: Sequence[Conditions],
    size: VideoSize,
    config: RolloutConfig,
    schedule: Schedule,
    window: range,
    seeds: Sequence[int],
    members: Sequence[int] = (),
    keep_means: bool = False,
    check: Callable[[], None] = lambda: None,
) -> tuple[RolloutBatch, Tensor]:
    """Sample B rollouts whose conditions have equal shapes; `check` is called before every step and may raise to stop.

    Returns the trained part (on the policy's device) and the final latents [B, C, F, h, w].
    """
    batch = policy.batch(conditions)
    generators = noise_generators(list(seeds))
    shape = policy.latent_shape(size, batch.references)
    latents = unit_noise(generators, shape, policy.device)
    guidance, step = training_guidance(config), DYNAMICS[config.dynamics]
    states, log_probs, means = [], [], []
    for index in range(config.steps):
        check()
        velocity = policy.velocity(latents, schedule.timestep_batch(index, len(seeds)), batch, guidance)
        if index not in window:
            latents = ode_step(latents, velocity, schedule, index)
            continue
        if not states:
            states.append(latents)
        taken = step(latents, velocity, schedule, index, noise=unit_noise(generators, shape, policy.device))
        latents = taken.next_latents
        states.append(latents)
        log_probs.append(taken.log_prob)
        if keep_means:
            means.append(taken.mean)
    kept = RolloutBatch(
        window,
        torch.stack(states, 1),
        torch.stack(log_probs, 1),
        torch.stack(means, 1) if keep_means else None,
        list(conditions),
        list(members),
    )
    return kept, latents


@dataclass(frozen=True)
class RolloutWorker:
    """Makes and scores one process's part of an iteration's rollouts.

    `check` is called before every denoising step and may raise to stop; `report` gets the fraction that is done.
    """

    policy: Policy
    reward: object
    items: Sequence[PromptItem]
    config: TrainConfig
    schedule: Schedule
    keep_means: bool
    check: Callable[[], None]
    report: Callable[[float], None]

    def collect(
        self, plan: list[Planned], window: range, own: range
    ) -> tuple[list[list[RolloutBatch]], list[tuple[int, float]]]:
        """The rollouts of each update (on the CPU), and (place in the plan, reward) of all of them.

        `own`: which places of every update this process works on.
        """
        config, video = self.config.rollout, self.config.video
        size = VideoSize(video.height, video.width, video.frames)
        per_update = len(plan) // config.updates_per_iteration
        encoded: dict[int, Conditions] = {}
        updates, rewards = [], []
        for first in range(0, len(plan), per_update):
            places = [first + i for i in own]
            for item in (plan[place].item for place in places):
                if item not in encoded:
                    encoded[item] = self.policy.encode(self.items[item], size)
            updates.append([])
            for members in micro_batches({place: encoded[plan[place].item] for place in places}, config.micro_batch):
                batch, final = roll_out(
                    self.policy,
                    [encoded[plan[i].item] for i in members],
                    size,
                    config,
                    self.schedule,
                    window,
                    [plan[i].seed for i in members],
                    members,
                    self.keep_means,
                    self.check,
                )
                videos = self.policy.decode(final, batch.conditions[0].references)
                items = [self.items[plan[i].item] for i in members]
                rewards += zip(
                    members, score_videos(self.reward, videos, items, self.config.reward).tolist(), strict=True
                )
                updates[-1].append(batch.to("cpu"))
                self.report(len(rewards) / (len(own) * config.updates_per_iteration))
        return updates, rewards
