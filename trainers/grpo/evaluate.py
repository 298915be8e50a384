"""Held-out evaluation: the same items and noise every time, deterministic sampling, paired against the base policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..config import TrainConfig
from ..diffusion.noise import derive_seed
from ..diffusion.sampling import decode_videos, sample_latents, stack_videos
from ..errors import UserError
from ..lora.inject import lora_disabled
from ..memory.placement import REWARD, TRANSFORMER, VAE, Placement
from ..policies.base import Guidance, Policy, VideoSize
from ..prompts import PromptItem
from ..ranks import rank_slice
from ..rewards.scoring import score_videos
from ..runs.folder import RunFolder
from .ema import Ema
from .plan import video_cost
from .ranks import Ranks

SAMPLES = 4
"""Held-out clips that are written after every evaluation."""
NORMAL_95 = 1.959964
"""Standard deviations on each side of the mean that hold 95% of a normal distribution."""


LEAST_ITEMS = 3
"""Of fewer the interval of the mean is too wide to say anything."""


class Judge(Protocol):
    """A measure that is reported and never trained on."""

    def __call__(self, videos: Tensor, items: Sequence[PromptItem]) -> dict[str, list]:
        """`identity`, `people` and where they are measured `alignment` and `quality` of each video, uint8
        [n, F, H, W, 3]; `people`: the identity of each person, in the order of the reference images."""


def _numbers(values: object) -> bool:
    return isinstance(values, list) and all(type(v) in (int, float) and math.isfinite(v) for v in values)


@dataclass(frozen=True)
class Measurement:
    """Per held-out item: its reward, and what the judge measured where there is one. Lists of equal length; `people`
    has a list for each item."""

    ids: list[str]
    rewards: list[float]
    identity: list[float] | None = None
    alignment: list[float] | None = None
    quality: list[float] | None = None
    people: list[list[float]] | None = None

    def to_dict(self) -> dict:
        return asdict(self)

    def is_of(self, items: Sequence[PromptItem]) -> bool:
        """Whether it is whole and of these items: one read from a file may not be."""
        lists = [values for values in (self.rewards, self.identity, self.alignment, self.quality) if values is not None]
        people = self.people if self.people is not None else [[] for _ in items]
        return (
            self.ids == [item.id for item in items]
            and all(_numbers(values) and len(values) == len(items) for values in lists)
            and isinstance(people, list)
            and len(people) == len(items)
            and all(map(_numbers, people))
        )

    @classmethod
    def join(cls, parts: Iterable[tuple[Sequence[int], dict]]) -> Measurement:
        """The measurements of several processes (as `to_dict`) as one; beside each the places of its items."""
        filled = [part for part in parts if part[0]]
        order = np.argsort([place for places, _ in filled for place in places])

        def joined(name: str) -> list | None:
            if filled[0][1][name] is None:
                return None
            values = [value for _, measured in filled for value in measured[name]]
            return [values[i] for i in order]

        return cls(**{name: joined(name) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Comparison:
    """Paired comparison with the base policy: shares of wins, ties and losses, `margin`, the mean difference of the
    rewards, and the 95% intervals of `win` and `margin`; that of `margin` is None for fewer than three items.
    """

    win: float
    tie: float
    loss: float
    win_low: float
    win_high: float
    margin: float
    margin_low: float | None
    margin_high: float | None


def evaluated_items(config: TrainConfig, held_out: Sequence[PromptItem]) -> Sequence[PromptItem]:
    """Those of the held-out items that are sampled and scored: the first `evaluation.items`."""
    return held_out[: config.evaluation.items]


def compare(before: Sequence[float], after: Sequence[float]) -> Comparison:
    """`after` wins an item when its reward exceeds that of `before`.

    The interval of `win` is Wilson's: one by resampling has no width where all items, few as they may be, agree. That
    of `margin` is Student's.
    """
    difference = np.asarray(after, np.float64) - np.asarray(before, np.float64)
    win, loss, tie = (float(share.mean()) for share in (difference > 0, difference < 0, difference == 0))
    weight = NORMAL_95**2 / len(difference)
    middle = (win + weight / 2) / (1 + weight)
    half = math.sqrt(weight * win * (1 - win) + weight**2 / 4) / (1 + weight)
    low, high = min(win, max(0.0, middle - half)), max(win, min(1.0, middle + half))
    margin, around = float(difference.mean()), None
    if len(difference) >= LEAST_ITEMS:
        around = student_95(len(difference) - 1) * float(difference.std(ddof=1)) / math.sqrt(len(difference))
    below, above = (None, None) if around is None else (margin - around, margin + around)
    return Comparison(win, tie, loss, low, high, margin, below, above)


def student_95(freedom: int) -> float:
    """Standard errors on each side of a mean that hold 95% of Student's distribution with `freedom` >= 2 degrees.

    Off by 0.03 at 2, by less than 0.005 above (Abramowitz and Stegun, 26.7.5).
    """
    z, v = NORMAL_95, float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def evaluation_row(iteration: int, baseline: Measurement, found: Measurement) -> dict:
    """One line of metrics.jsonl: `found` at `iteration` against the base policy's `baseline`."""
    row = {
        "kind": "evaluation",
        "iteration": iteration,
        "reward_mean": sum(found.rewards) / len(found.rewards),
        **vars(compare(baseline.rewards, found.rewards)),
    }
    for name in ("identity", "alignment", "quality"):
        values, before = getattr(found, name), getattr(baseline, name)
        if values is not None:
            row[name] = sum(values) / len(values)
            if sum(before) > 0:
                row[f"{name}_gain"] = row[name] / (sum(before) / len(before)) - 1
    for place in range(max(map(len, found.people or ()), default=0)):
        # Of the items that have so many people.
        values = [people[place] for people in found.people if len(people) > place]
        row[f"identity_person_{place + 1}"] = sum(values) / len(values)
    return row


def reward_up_judge_down(earlier: Measurement, now: Measurement) -> tuple[float, float] | None:
    """Mean changes of the reward and of the judged identity, if the reward has risen while the identity fell.

    Both by more than two standard errors of the paired differences; else None.
    """
    if earlier.identity is None or now.identity is None:
        return None
    reward, identity = (
        np.subtract(after, before)
        for before, after in ((earlier.rewards, now.rewards), (earlier.identity, now.identity))
    )
    noise = 2 / math.sqrt(len(reward))
    if reward.mean() > noise * reward.std() and identity.mean() < -noise * identity.std():
        return float(reward.mean()), float(identity.mean())
    return None


def evaluation_size(config: TrainConfig) -> VideoSize:
    video = config.evaluation.video or config.video
    return VideoSize(video.height, video.width, video.frames)


def evaluation_guidance(config: TrainConfig) -> Guidance:
    """The scales that evaluation and samples use: training's, where evaluation has none of its own."""
    text, image = config.evaluation.guidance, config.evaluation.image_guidance
    return Guidance(
        config.rollout.guidance if text is None else text, config.rollout.image_guidance if image is None else image
    )


def evaluation_micro_batch(config: TrainConfig) -> int:
    """Videos sampled at once: as many as have the pixels of a micro-batch of rollouts, at least one."""
    own, training = evaluation_size(config), config.video
    pixels = training.height * training.width * training.frames
    return max(1, config.rollout.micro_batch * pixels // (own.height * own.width * own.frames))


def held_out_videos(
    policy: Policy,
    items: Sequence[PromptItem],
    config: TrainConfig,
    check: Callable[[], None] = lambda: None,
    progress: Callable[[Sequence], Iterable] = iter,
    placement: Placement | None = None,
) -> Tensor:
    """Videos uint8 [n, F, H, W, 3] of the items with the noise that every evaluation of this config uses, on the CPU.

    `check` is called before every step, `progress` iterates over the micro-batches. `placement` moves the policy's
    parts; without it they stay where they are.
    """
    size = evaluation_size(config)
    conditions = [policy.encode(item, size) for item in items]
    seeds = [derive_seed(config.evaluation.seed, "evaluation", item.id) for item in items]

    def sample(_: Iterable) -> Iterator[tuple[list[int], Tensor, int]]:
        found = sample_latents(
            policy,
            conditions,
            size,
            config.evaluation.steps,
            config.rollout.shift,
            evaluation_guidance(config),
            seeds,
            evaluation_micro_batch(config),
            check,
            progress,
        )
        return ((chunk, latents.cpu(), references) for chunk, latents, references in found)

    videos = (placement or Placement()).pipeline(
        "evaluation: videos",
        ("evaluation: sample", TRANSFORMER, sample),
        ("evaluation: decode", VAE, lambda sampled: decode_videos(policy, sampled)),
    )
    return stack_videos(videos)


@torch.no_grad()
def measure(
    reward, videos: Tensor, items: Sequence[PromptItem], config: TrainConfig, judge: Judge | None = None
) -> Measurement:
    """Rewards of the videos uint8 [n, F, H, W, 3], and what the judge says of them.

    Raises UserError when a reward is not finite.
    """
    rewards = score_videos(reward, videos, items, config.reward).tolist()
    for item, value in zip(items, rewards, strict=True):
        if not math.isfinite(value):
            raise UserError(
                f"the reward of held-out item `{item.id}` is {value}; check its reference images and the reward model"
            )
    judged = judge(videos, items) if judge and items else {}
    return Measurement([item.id for item in items], rewards, **judged)


class Evaluator:
    """Measures a run's averaged LoRA on its held-out items, shared by all processes, and writes what it found.

    `check` is called before every denoising step and may raise to stop; `report` gets the fraction that is done.
    """

    def __init__(
        self,
        policy: Policy,
        reward: object,
        items: Sequence[PromptItem],
        judge: Judge | None,
        config: TrainConfig,
        run: RunFolder,
        ranks: Ranks,
        placement: Placement,
        check: Callable[[], None],
        report: Callable[[float], None],
    ) -> None:
        self.policy, self.reward, self.judge, self.config = policy, reward, judge, config
        self.placement = placement
        self.items = items
        self.run, self.ranks, self.check, self.report = run, ranks, check, report
        self.baseline = ranks.from_main(lambda: run.read_measurement("base", Measurement))
        if self.baseline is not None and not self.baseline.is_of(self.items):
            self.baseline = None
        self.warning = ""

    def evaluate(self, iteration: int, ema: Ema) -> dict:
        """The row of metrics.jsonl for the averaged LoRA against the base policy, which is measured once, first."""
        untrained = iteration == 0 and not self.config.start_lora
        if self.baseline is None or untrained:
            self.baseline, clips = self._measure(lora_disabled(self.policy.transformer))
        # The LoRA of an untrained run changes nothing yet.
        found = self.baseline
        if not untrained:
            found, clips = self._measure(ema.applied())
        row = evaluation_row(iteration, self.baseline, found)
        self._watch(found)

        def write() -> None:
            self.run.write_measurement("base", self.baseline.to_dict())
            self.run.write_measurement(iteration, found.to_dict())
            self.run.append_metrics(row)

        self._write_clips(iteration, self._costs, clips, write)
        return row

    def _watch(self, found: Measurement) -> None:
        """Set `warning` when the reward rose and the judge fell since the evaluation that was best by the judge."""
        judged = [row for row in self.run.evaluations() if row.get("identity") is not None]
        best = max(judged, key=lambda row: row["identity"], default=None)
        earlier = self.run.read_measurement(best["iteration"], Measurement) if best else None
        changes = reward_up_judge_down(earlier, found) if earlier and earlier.is_of(self.items) else None
        self.warning = ""
        if changes:
            reward, identity = changes
            self.warning = (
                f"reward up, judge down: since iteration {best['iteration']} the held-out reward rose by {reward:.2f} "
                f"and the judged identity fell by {-identity:.3f}; prefer that iteration's LoRA"
            )

    def write_samples(self, iteration: int, ema: Ema) -> None:
        """Clips of the present average, between two evaluations."""
        costs = self._costs[:SAMPLES]
        own = self.ranks.slice(costs)

        def sample() -> dict[int, Tensor]:
            with ema.applied():
                return dict(zip(own, self._videos(own), strict=True))

        self._write_clips(iteration, costs, self.ranks.on_all_ranks(sample))

    @property
    def _costs(self) -> list[int]:
        """What sampling each item costs."""
        size = evaluation_size(self.config)
        return [video_cost(size, len(item.references)) for item in self.items]

    def _videos(self, own: Sequence[int], progress: Callable[[Sequence], Iterable] = iter) -> Tensor:
        items = [self.items[place] for place in own]
        return held_out_videos(self.policy, items, self.config, self.check, progress, self.placement)

    def _measure(self, weights: AbstractContextManager) -> tuple[Measurement, dict[int, Tensor]]:
        """The measurement of all items with the weights that hold in the context, and this process's part of the
        clips, by the places of their items."""
        own = self.ranks.slice(self._costs)
        clips: dict[int, Tensor] = {}

        def reported(chunks: Sequence) -> Iterator:
            for index, chunk in enumerate(chunks):
                self.report(index / len(chunks))
                yield chunk

        def part() -> list[tuple[list[int], dict]]:
            with weights:
                videos = self._videos(own, reported)
            clips.update((place, video) for place, video in zip(own, videos, strict=True) if place < SAMPLES)
            with self.placement.phase("evaluation: score", REWARD):
                items = [self.items[place] for place in own]
                return [(own, measure(self.reward, videos, items, self.config, self.judge).to_dict())]

        return Measurement.join(self.ranks.gather_results(part)), clips

    def _write_clips(
        self, iteration: int, costs: Sequence[int], own: dict[int, Tensor], then: Callable[[], None] = lambda: None
    ) -> None:
        """The main process writes the clips of all, and runs `then` next. `costs`: by which items were shared out."""
        each, groups = self.ranks.count // self.ranks.groups, self.ranks.groups
        slices = [rank_slice(costs, group, groups) for group in range(groups)]
        owners = {place: group * each for group, places in enumerate(slices) for place in places if place < SAMPLES}
        clips = [self.ranks.send_to_main(own.get(place), owners[place]) for place in sorted(owners)]

        def write() -> None:
            if self.ranks.is_main:
                self.run.write_clips(iteration, self.items[: len(clips)], clips, self.config.reward.fps)
                then()

        self.ranks.on_all_ranks(write)
