"""Rollouts: sampled videos with what training needs of them, and their rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from threading import Lock

import torch
from torch import Tensor

from ..config import RolloutConfig, TrainConfig
from ..diffusion.noise import noise_generators, unit_noise
from ..diffusion.sampling import micro_batches
from ..diffusion.schedule import Schedule
from ..diffusion.solvers import ode_step
from ..memory.placement import REWARD, TRANSFORMER, VAE, Placement
from ..policies.base import Conditions, Guidance, Policy, VideoSize
from ..policies.fp8 import fast_products
from ..prompts import PromptItem
from ..rewards.several import Rewards
from .base_motion import BaseMotion
from .plan import Planned
from .sde import DYNAMICS


@dataclass(frozen=True)
class RolloutBatch:
    """The trained part of B rollouts with equal shapes.

    `steps` int64 [B, K]: the K trained steps of each rollout. `states` float32 [B, M, C, F, h, w]: the latents entering
    and leaving them; neighbouring steps share a state, so M is K + 1 where all steps are neighbours, else 2 K.
    `log_probs` float32 [B, K] and `means` [B, K, C, F, h, w] (only kept for GRPO-Guard, else None) belong to the policy
    that sampled. `plan_indices`: places of the rollouts in the iteration's plan.
    """

    steps: Tensor
    states: Tensor
    log_probs: Tensor
    means: Tensor | None
    conditions: list[Conditions]
    plan_indices: list[int]

    def __len__(self) -> int:
        return len(self.states)

    @property
    def trained_steps(self) -> int:
        """K."""
        return self.steps.shape[1]

    def transition(self, k: int) -> tuple[Tensor, Tensor]:
        """The latents entering and leaving the k-th trained step of each rollout: [B, C, F, h, w] each."""
        shared = self.states.shape[1] == self.trained_steps + 1
        before, after = (k, k + 1) if shared else (2 * k, 2 * k + 1)
        return self.states[:, before], self.states[:, after]

    def to(self, device: torch.device | str) -> RolloutBatch:
        return self._each(lambda tensor: tensor.to(device))

    def __getitem__(self, part: slice) -> RolloutBatch:
        kept = self._each(lambda tensor: tensor[part])
        return replace(kept, conditions=self.conditions[part], plan_indices=self.plan_indices[part])

    def _each(self, change: Callable[[Tensor], Tensor]) -> RolloutBatch:
        means = None if self.means is None else change(self.means)
        states, log_probs = change(self.states), change(self.log_probs)
        return replace(self, steps=change(self.steps), states=states, log_probs=log_probs, means=means)


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
    windows: Sequence[Sequence[int]],
    seeds: Sequence[int],
    plan_indices: Sequence[int] = (),
    keep_means: bool = False,
    check: Callable[[], None] = lambda: None,
) -> tuple[RolloutBatch, Tensor]:
    """Sample B rollouts whose conditions have equal shapes; `check` is called before every step and may raise to stop.

    `windows`: the trained steps of each rollout, all equally many. Returns the trained part (on the policy's device)
    and the final latents [B, C, F, h, w].
    """
    batch = policy.batch(conditions)
    generators = noise_generators(list(seeds))
    shape = policy.latent_shape(size, batch.references)
    latents = unit_noise(generators, shape, policy.device)
    guidance, step = training_guidance(config), DYNAMICS[config.dynamics]
    steps = torch.tensor([list(window) for window in windows])
    count, trained = len(seeds), steps.shape[1]
    shared = bool((steps.diff(dim=1) == 1).all())
    states = latents.new_empty(count, trained + 1 if shared else 2 * trained, *shape)
    log_probs = latents.new_empty(count, trained)
    means = latents.new_empty(count, trained, *shape) if keep_means else None
    for index in range(config.steps):
        check()
        rows, places = (steps == index).nonzero(as_tuple=True)
        with nullcontext() if len(rows) else fast_products(policy.transformer):
            velocity = policy.velocity(latents, schedule.timestep_batch(index, count), batch, guidance)
        following = ode_step(latents, velocity, schedule, index) if len(rows) < count else latents.clone()
        if len(rows):
            noise = unit_noise([generators[row] for row in rows.tolist()], shape, policy.device)
            taken = step(latents[rows], velocity[rows], schedule, index, noise=noise)
            before = places if shared else 2 * places
            states[rows, before], states[rows, before + 1] = latents[rows], taken.next_latents
            following[rows] = taken.next_latents
            log_probs[rows, places] = taken.log_prob
            if keep_means:
                means[rows, places] = taken.mean
        latents = following
    return RolloutBatch(steps, states, log_probs, means, list(conditions), list(plan_indices)), latents


SHARES = {"sample": 0.85, "decode": 0.05, "score": 0.1}
"""Part of a rollout's time that each stage takes, roughly."""


@dataclass(frozen=True)
class RolloutWorker:
    """Makes and scores one process's part of an iteration's rollouts.

    `base_motion`: for rewards that need it. `check` is called before every denoising step and every other piece of
    work, and may raise to stop; `report` gets the fraction that is done.
    """

    policy: Policy
    rewards: Rewards
    base_motion: BaseMotion
    items: Sequence[PromptItem]
    config: TrainConfig
    schedule: Schedule
    keep_means: bool
    placement: Placement
    check: Callable[[], None]
    report: Callable[[float], None]

    def collect(
        self,
        plan: list[Planned],
        windows: Sequence[Sequence[int]],
        own: Sequence[Sequence[int]],
        updates: Sequence[list[RolloutBatch]],
    ) -> list[tuple[int, list[float]]]:
        """Add the rollouts of each update to `updates` (on the CPU); returns (place in the plan, its rewards) of all.

        `windows`: the trained steps of each group. `own`: the places in the plan of each update that this process works
        on.
        """
        videos, done = sum(map(len, own)), dict.fromkeys(SHARES, 0)
        if self.rewards.needs_motion:
            self.base_motion.require(plan[place].item for places in own for place in places)

        lock = Lock()  # scoring may have a thread of its own

        def advance(stage: str, count: int) -> None:
            with lock:
                done[stage] += count
                self.report(sum(SHARES[name] * number for name, number in done.items()) / videos)

        return self.placement.pipeline(
            "rollouts",
            ("sample", TRANSFORMER, lambda _: self._sample(plan, windows, own, updates, advance)),
            ("decode", VAE, lambda sampled: self._decode(sampled, advance)),
            ("score", REWARD, lambda decoded: self._score(plan, decoded, advance)),
        )

    def _sample(
        self,
        plan: list[Planned],
        windows: Sequence[Sequence[int]],
        own: Sequence[Sequence[int]],
        updates: Sequence[list[RolloutBatch]],
        advance: Callable[[str, int], None],
    ) -> Iterator[tuple[RolloutBatch, Tensor]]:
        """Each batch with its final latents, on the CPU; they are added to `updates`."""
        config, video = self.config.rollout, self.config.video
        size = VideoSize(video.height, video.width, video.frames)
        encoded: dict[int, Conditions] = {}
        for places, batches in zip(own, updates, strict=True):
            for item in (plan[place].item for place in places):
                if item not in encoded:
                    encoded[item] = self.policy.encode(self.items[item], size)
            for members in micro_batches({place: encoded[plan[place].item] for place in places}, config.micro_batch):
                batch, final = roll_out(
                    self.policy,
                    [encoded[plan[i].item] for i in members],
                    size,
                    config,
                    self.schedule,
                    [windows[plan[i].group] for i in members],
                    [plan[i].seed for i in members],
                    members,
                    self.keep_means,
                    self.check,
                )
                batches.append(batch.to("cpu"))
                advance("sample", len(members))
                yield batches[-1], final.cpu()

    def _decode(
        self, sampled: Iterable[tuple[RolloutBatch, Tensor]], advance: Callable[[str, int], None]
    ) -> Iterator[tuple[list[int], Tensor]]:
        """The places in the plan of each batch and their videos, on the CPU."""
        for batch, final in sampled:
            self.check()
            videos = self.policy.decode(final, batch.conditions[0].references).cpu()
            advance("decode", len(videos))
            yield batch.plan_indices, videos

    def _score(
        self,
        plan: list[Planned],
        decoded: Iterable[tuple[list[int], Tensor]],
        advance: Callable[[str, int], None],
    ) -> Iterator[tuple[int, list[float]]]:
        """Each place in the plan with its rewards.

        Rollouts take far more memory than scoring, so that the micro-batches of the two differ.
        """
        unscored: dict[int, Tensor] = {}

        def score() -> Iterator[tuple[int, list[float]]]:
            places = [plan[place].item for place in unscored]
            motion = [self.base_motion[place] for place in places] if self.rewards.needs_motion else []
            found = self.rewards.score(list(unscored.values()), [self.items[place] for place in places], motion)
            advance("score", len(unscored))
            yield from zip(unscored, found.tolist(), strict=True)
            unscored.clear()

        for members, videos in decoded:
            unscored |= dict(zip(members, videos, strict=True))
            if len(unscored) >= self.config.reward.micro_batch:
                self.check()
                yield from score()
        if unscored:
            yield from score()
