"""The phases of an iteration, each on the code that training runs."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import TrainConfig
from ..diffusion.noise import derive_seed
from ..diffusion.sampling import denoise
from ..diffusion.schedule import flow_schedule
from ..grpo.base_motion import BaseMotion
from ..grpo.checkpoint import TrainingState, capture, save_checkpoint
from ..grpo.evaluate import evaluation_guidance, evaluation_micro_batch, evaluation_size
from ..grpo.iteration import Iteration
from ..grpo.plan import plan_iteration, plan_windows
from ..grpo.ranks import Ranks
from ..grpo.rollout import RolloutBatch, RolloutWorker, roll_out, training_guidance
from ..grpo.update import PolicyUpdate
from ..memory.placement import Placement
from ..policies.base import Conditions, VideoSize
from ..policies.load import LazyTextEncoder
from ..policies.wan import WanVideoPolicy
from ..prompts import PromptItem
from ..rewards.identity import IdentityReward
from ..rewards.scoring import score_videos
from ..rewards.several import Rewards
from ..tinyworld.models import PORTRAIT
from .iteration import PHASES
from .measure import Clock, Phase, timed_steps

SAMPLED_STEPS = 3
"""Steps that are timed of one rollout by default."""
PICTURES = {"tiny": PORTRAIT, "1.3b": 480, "14b": 480}
"""Side of a reference image in pixels."""


class Workload:
    """A policy and a reward at work as in a run of `config`, with reference images and prompts made up on the way.

    `references`: people per prompt item; `side`: of their pictures, in pixels. `timed_steps`: of one rollout.
    `ranks`: the processes that work beside each other.
    """

    def __init__(
        self,
        policy: WanVideoPolicy,
        reward: IdentityReward | None,
        config: TrainConfig,
        references: int = 2,
        side: int = PORTRAIT,
        timed_steps: int = SAMPLED_STEPS,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        self.side, self.timed_steps = side, timed_steps
        self.policy, self.reward, self.config, self.references = policy, reward, config, references
        video = config.video
        self.size = VideoSize(video.height, video.width, video.frames)
        self.schedule = flow_schedule(config.rollout.steps, config.rollout.shift, policy.device)
        self.ratio_error: float | None = None
        self._numbers = count()
        self._random = np.random.default_rng(0)

    def phases(self, names: Sequence[str]) -> list[Phase]:
        """The phases by their keys in PHASES, in that order. Without a reward there is no `score`."""
        made = {
            "text": ("prompt item", 1, self.policy.dtype, self._encode_text),
            "references": ("prompt item", 1, torch.float32, self._encode_references),
            "ode": ("video", self._sampled, self.policy.dtype, self._sample_ode),
            "sde": ("video", self._sampled, self.policy.dtype, self._sample_sde),
            "decode": ("video", self.config.rollout.micro_batch, torch.float32, self._decode),
            "score": ("video", self.config.reward.micro_batch, getattr(torch, self.config.reward.dtype), self._score),
            "train": ("video", self.config.optim.micro_batch, self.policy.dtype, self._train),
            "optimiser": ("update", 1, torch.float32, self._optimise),
            "checkpoint": ("checkpoint", 1, torch.float32, self._save),
            "evaluate": ("video", self._evaluated * self._evaluation_steps, self.policy.dtype, self._evaluate),
            "evaluate-decode": ("video", self._evaluated, torch.float32, self._decode_evaluated),
        }
        return [Phase(PHASES[name], *made[name]) for name in PHASES if name in names]

    def whole_iteration(self) -> Phase:
        """The rollouts of all processes, their rewards and the updates, as a run's iteration; needs a reward."""
        rollout = self.config.rollout
        return Phase(
            "whole iteration", "video", rollout.groups * rollout.group_size, self.policy.dtype, self._run_iteration
        )

    def warm_caches(self) -> None:
        """Encode the item whose conditions the other phases use; the text encoder is released, as in a run."""
        _ = self.conditions
        self._release_text_encoder()

    @cached_property
    def conditions(self) -> Conditions:
        return self.policy.encode(self._item, self.size)

    @property
    def attention_shape(self) -> tuple[int, int, int, int]:
        """Of a sampled step: videos with their guidance branches, tokens, heads, channels of a head."""
        policy, config, rollout = self.policy, self.policy.transformer.config, self.config.rollout
        _, frames, height, width = policy.clip_shape(self.size)
        tokens = (frames + self.conditions.references) * height * width // math.prod(config.patch_size)
        sequences = rollout.micro_batch * policy.branches(training_guidance(rollout))
        return sequences, tokens, config.num_attention_heads, config.attention_head_dim

    @cached_property
    def update(self) -> PolicyUpdate:
        return PolicyUpdate(self.policy, self.config, self._short_schedule, self.ranks)

    # --- one phase each ----------------------------------------------------------------------------------------------

    def _encode_text(self, clock: Clock) -> None:
        prompt = f"two people wave {next(self._numbers)} times"
        clock.start()
        self.policy.text.encode([prompt])
        clock.stop()

    def _encode_references(self, clock: Clock) -> None:
        self.warm_caches()
        item = dataclasses.replace(self._item, references=self._pictures())
        clock.start()
        self.policy.encode(item, self.size)
        clock.stop()

    def _sample_ode(self, clock: Clock) -> None:
        # The one step with noise lies behind those that are timed.
        self._sample(clock, [self.config.rollout.steps - 1])

    def _sample_sde(self, clock: Clock) -> None:
        self._sample(clock, range(self._timed_steps))

    def _sample(self, clock: Clock, window: Sequence[int]) -> None:
        with timed_steps(clock, self._timed_steps) as step:
            self._roll_out(self.config.rollout.micro_batch, window, step)

    def _decode(self, clock: Clock) -> None:
        self._decode_at(clock, self.size, self.config.rollout.micro_batch)

    def _decode_evaluated(self, clock: Clock) -> None:
        self._decode_at(clock, evaluation_size(self.config), self._evaluated)

    def _decode_at(self, clock: Clock, size: VideoSize, number: int) -> None:
        latents = self._latents(size, number)
        clock.start()
        self.policy.decode(latents, self.references)
        clock.stop()

    def _evaluate(self, clock: Clock) -> None:
        number, size, config = self._evaluated, evaluation_size(self.config), self.config
        schedule = flow_schedule(config.evaluation.steps, config.rollout.shift, self.policy.device)
        batch = self.policy.batch([self._evaluation_conditions] * number)
        noise = self._latents(size, number)
        with timed_steps(clock, self._evaluation_steps) as step:
            denoise(self.policy, batch, schedule, evaluation_guidance(config), noise, step)

    def _score(self, clock: Clock) -> None:
        size, number = self.size, self.config.reward.micro_batch
        videos = torch.zeros(number, size.frames, size.height, size.width, 3, dtype=torch.uint8)
        videos = videos.to(self.policy.device)
        # As in a run: videos of one item come in groups, and its references are embedded once.
        groups = range(-(-number // self.config.rollout.group_size))
        items = [dataclasses.replace(self._item, references=self._pictures()) for _ in groups]
        items = [items[place // self.config.rollout.group_size] for place in range(number)]
        clock.start()
        score_videos(self.reward, list(videos), items, self.config.reward)
        clock.stop()

    def _train(self, clock: Clock) -> None:
        batch, update = self._rollout_batch, self.update
        advantages = torch.tensor([1.0, -1.0]).repeat(len(batch))[: len(batch)]
        clock.start()
        sums = update.accumulate([batch], advantages, len(batch), lambda: None, lambda _: None, on_policy=True)
        clock.stop()
        self.ratio_error = sums["ratio_error"] / len(batch)

    def _optimise(self, clock: Clock) -> None:
        # Gradients that are missing count as zero, and take as long.
        update = self.update
        clock.start()
        update.step(self.config.ema.every)
        clock.stop()

    def _save(self, clock: Clock) -> None:
        update = self.update
        with tempfile.TemporaryDirectory() as folder:
            clock.start()
            save_checkpoint(Path(folder), capture(TrainingState(), update))
            clock.stop()

    def _run_iteration(self, clock: Clock) -> None:
        config, policy, ranks, placement = self.config, self.policy, self.ranks, Placement()
        items = self._items
        guidance = training_guidance(config.rollout)
        worker = RolloutWorker(
            policy,
            Rewards(config, self.reward, items, policy.device),
            BaseMotion(policy, items, config, guidance, placement, lambda: None),
            items,
            config,
            self.schedule,
            self.update.loss.needs_means,
            placement,
            lambda: None,
            lambda done: None,
        )
        plan = plan_iteration(config.seed, 0, config.rollout, len(items))
        windows = plan_windows(config.seed, 0, config.rollout)
        # Its own schedule: that of the other phases is shorter.
        iteration = Iteration(worker, PolicyUpdate(policy, config, self.schedule, ranks), ranks)
        clock.start()
        updates, rewards = iteration.collect(plan, windows)
        iteration.learn(plan, updates, rewards)
        clock.stop()

    # --- what they work on -------------------------------------------------------------------------------------------

    @property
    def _timed_steps(self) -> int:
        return min(self.timed_steps, self.config.rollout.steps - 1)

    @property
    def _sampled(self) -> int:
        return self._timed_steps * self.config.rollout.micro_batch

    @property
    def _evaluated(self) -> int:
        return evaluation_micro_batch(self.config)

    @property
    def _evaluation_steps(self) -> int:
        return min(self.timed_steps, self.config.evaluation.steps - 1)

    @cached_property
    def _evaluation_conditions(self) -> Conditions:
        return self.policy.encode(self._item, evaluation_size(self.config))

    @cached_property
    def _item(self) -> PromptItem:
        return PromptItem("bench", "two people wave", self._pictures(), self.config.negative_prompt)

    @cached_property
    def _items(self) -> list[PromptItem]:
        """One for each group of an iteration, encoded."""
        groups = range(self.config.rollout.groups)
        items = [dataclasses.replace(self._item, id=f"bench {n}", references=self._pictures()) for n in groups]
        for item in items:
            self.policy.encode(item, self.size)
        self._release_text_encoder()
        return items

    def _release_text_encoder(self) -> None:
        if isinstance(self.policy.text.encoder, LazyTextEncoder):
            self.policy.text.encoder.release()

    @cached_property
    def _short_schedule(self):
        return flow_schedule(2, self.config.rollout.shift, self.policy.device)

    @cached_property
    def _rollout_batch(self) -> RolloutBatch:
        """Rollouts of two steps, of which the first is trained: their density is the policy's own."""
        rollout = self.config.rollout.model_copy(update={"steps": 2})
        number = self.config.optim.micro_batch
        batch, _ = roll_out(
            self.policy,
            [self.conditions] * number,
            self.size,
            rollout,
            self._short_schedule,
            [[0]] * number,
            self._seeds(number),
            range(number),
            self.update.loss.needs_means,
        )
        return batch.to("cpu")

    def _roll_out(self, number: int, window: Sequence[int], check: Callable[[], None]) -> None:
        roll_out(
            self.policy,
            [self.conditions] * number,
            self.size,
            self.config.rollout,
            self.schedule,
            [list(window)] * number,
            self._seeds(number),
            check=check,
        )

    def _latents(self, size: VideoSize, number: int) -> Tensor:
        shape = self.policy.latent_shape(size, self.references)
        generator = torch.Generator(self.policy.device).manual_seed(0)
        return torch.randn(number, *shape, generator=generator, device=self.policy.device)

    def _seeds(self, number: int) -> list[int]:
        return [derive_seed(self.config.seed, "bench", index) for index in range(number)]

    def _pictures(self) -> tuple[np.ndarray, ...]:
        return tuple(self._random.integers(0, 256, (self.references, self.side, self.side, 3), np.uint8))
