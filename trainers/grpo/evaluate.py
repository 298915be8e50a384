"""Held-out measurement: the same items and noise every time, deterministic sampling, paired against the untouched policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from ..config import TrainConfig
from ..policies.base import Guidance, Policy, VideoSize
from ..prompts import PromptItem
from .plan import derive_seed
from .rollout import sample


@dataclass(frozen=True)
class Measurement:
    """Per held-out item: its score, and for drawn worlds the renderer's own measures. Lists of equal length."""

    ids: list[str]
    rewards: list[float]
    identity: list[float] | None = None
    alignment: list[float] | None = None

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Paired comparison with the untouched policy: shares of won, tied and lost items, 95% bootstrap interval of `win`,
    and `margin`, the mean difference of the rewards.
    """

    win: float
    tie: float
    loss: float
    win_low: float
    win_high: float
    margin: float


def compare(before: Sequence[float], after: Sequence[float]) -> Comparison:
    """`after` wins an item when its reward exceeds that of `before`; items are drawn anew 2000 times for the interval."""
    difference = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    wins = difference > 0
    draws = np.random.default_rng(0).integers(len(wins), size=(2000, len(wins)))
    low, high = np.quantile(wins[draws].mean(1), [0.025, 0.975])
    loss, tie = float((difference < 0).mean()), float((difference == 0).mean())
    return Comparison(float(wins.mean()), tie, loss, float(low), float(high), float(difference.mean()))


def evaluation_size(config: TrainConfig) -> VideoSize:
    video = config.evaluation.video or config.video
    return VideoSize(video.height, video.width, video.frames)


def evaluation_guidance(config: TrainConfig) -> Guidance:
    """The scales that evaluation and samples are drawn with: training's, where it has none of its own."""
    text, image = config.evaluation.guidance, config.evaluation.image_guidance
    return Guidance(
        config.rollout.guidance if text is None else text, config.rollout.image_guidance if image is None else image
    )


def held_out_videos(
    policy: Policy,
    items: Sequence[PromptItem],
    config: TrainConfig,
    check: Callable[[], None] = lambda: None,
    progress: Callable[[Sequence], Iterable] = iter,
) -> Tensor:
    """Videos uint8 [n, F, H, W, 3] of the items with the noise that every evaluation of this config uses.

    `check` is called before every step, `progress` goes through the micro-batches.
    """
    size = evaluation_size(config)
    conditions = [policy.encode(item, size) for item in items]
    seeds = [derive_seed(config.evaluation.seed, "evaluation", item.id) for item in items]
    return sample(
        policy,
        conditions,
        size,
        config.evaluation.steps,
        config.rollout.shift,
        evaluation_guidance(config),
        seeds,
        config.rollout.micro_batch,
        check,
        progress,
    )


@torch.no_grad()
def measure(reward, videos: Tensor, items: Sequence[PromptItem], config: TrainConfig) -> Measurement:
    """Score the videos; items of a drawn world are measured by its oracle as well, which no reward ever sees."""
    rewards = score_videos(reward, videos, items, config)
    identity = alignment = None
    if items and all("scene" in item.extra for item in items):
        from ..tinyworld.oracle import measure as oracle
        from ..tinyworld.prompts import scenes_of

        found = oracle(videos, scenes_of(items))
        identity, alignment = found.identity.tolist(), found.alignment.tolist()
    return Measurement([item.id for item in items], rewards.tolist(), identity, alignment)


def score_videos(reward, videos: Tensor, items: Sequence[PromptItem], config: TrainConfig) -> Tensor:
    """Rewards float64 [n] of videos uint8 [n, F, H, W, 3], in micro-batches."""
    size = config.reward.micro_batch
    scores = [
        reward.score(
            list(videos[i : i + size]), [item.references for item in items[i : i + size]], fps=config.reward.fps
        )
        for i in range(0, len(videos), size)
    ]
    return torch.cat([s.double().cpu() for s in scores]) if scores else torch.zeros(0, dtype=torch.float64)
