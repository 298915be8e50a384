"""Preference pairs in memory, and how often a reward agrees with their labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..pictures.reading import Picture
from ..rewards.identity import IdentityReward, preference_probabilities
from .loss import A_BETTER, B_BETTER, INVALID, TIE, btt_loss

AT_ONCE = 64
"""Pairs that are in memory at a time when they are scored."""


@dataclass(frozen=True)
class Pair:
    """Two clips of the same people: `label` 1 (A keeps them better), -1 (B), 0 (tie) or 22 (invalid, ignored).

    Clips are uint8 [F, H, W, 3] at `fps` frames per second, B at `fps_b` where it differs; `kind` names where the pair
    comes from, for reports.
    """

    references: Sequence[Picture]
    video_a: Tensor | np.ndarray
    video_b: Tensor | np.ndarray
    label: int
    fps: float = 10.0
    kind: str = ""
    fps_b: float | None = None

    @property
    def rates(self) -> tuple[float, float]:
        """Frames per second of A and of B."""
        return self.fps, self.fps if self.fps_b is None else self.fps_b


@dataclass(frozen=True)
class Scored:
    """Scores float32 [N] of the clips A and B of N valid pairs, and the pairs' labels int64 [N] and kinds."""

    reward_a: Tensor
    reward_b: Tensor
    labels: Tensor
    kinds: list[str]

    @classmethod
    def join(cls, parts: Sequence[Scored]) -> Scored:
        """One of all pairs, in the order of the parts."""
        numbers = (torch.cat([getattr(part, name) for part in parts]) for name in ("reward_a", "reward_b", "labels"))
        return cls(*numbers, [kind for part in parts for kind in part.kinds])


@dataclass(frozen=True)
class Accuracy:
    """Shares of pairs on which a reward agrees with the label.

    `with_ties` predicts the likeliest of win, tie and loss; `without_ties` asks, of the decided pairs, only for the
    sign. `by_kind` is `without_ties` per kind of pair. A share over no pairs is NaN. `loss` is the mean of the
    training's loss over all pairs.
    """

    with_ties: float
    without_ties: float
    pairs: int
    decided: int
    by_kind: dict[str, float]
    loss: float


@dataclass(frozen=True)
class CalibrationBin:
    """Of `count` predictions with a probability near `predicted` (their mean), the share `observed` came true."""

    predicted: float
    observed: float
    count: int


def score_pairs(
    reward: IdentityReward,
    pairs: Sequence[Pair],
    batch_size: int = 32,
    at_once: int = AT_ONCE,
    on_scored: Callable[[int], None] | None = None,
) -> Scored:
    """The scores of all pairs but the invalid ones; a clip that stands in neighbouring pairs is scored once.

    `at_once`: pairs that are in memory at a time; after them `on_scored` gets the number of pairs that are done.
    """
    a, b, labels, kinds = [], [], [], []
    for start in range(0, len(pairs), at_once):
        end = min(start + at_once, len(pairs))
        part = [pairs[i] for i in range(start, end)]
        part = [pair for pair in part if pair.label != INVALID]
        clips: dict[tuple, int] = {}
        videos, references, rates, places = [], [], [], []
        for pair in part:
            for video, rate in zip((pair.video_a, pair.video_b), pair.rates, strict=True):
                key = (_memory(video), rate, tuple(map(_memory, pair.references)))
                if key not in clips:
                    clips[key] = len(videos)
                    videos.append(video)
                    references.append(pair.references)
                    rates.append(rate)
                places.append(clips[key])
        scores = reward.score(videos, references, rates, batch_size)[places]
        a.append(scores[0::2])
        b.append(scores[1::2])
        labels += [pair.label for pair in part]
        kinds += [pair.kind for pair in part]
        if on_scored:
            on_scored(end)
    empty = torch.empty(0)
    return Scored(torch.cat(a or [empty]), torch.cat(b or [empty]), torch.tensor(labels, dtype=torch.int64), kinds)


def _memory(picture: Picture | Tensor) -> object:
    """What is equal for two views of the same pixels, while both are alive."""
    if isinstance(picture, Tensor):
        return picture.data_ptr(), tuple(picture.shape)
    return id(picture)


def accuracy(reward: IdentityReward, pairs: Sequence[Pair], theta: float = 5.0, batch_size: int = 32) -> Accuracy:
    """How often `reward` agrees with the labels of `pairs`, without the invalid ones. Raises UserError."""
    return agreement(score_pairs(reward, pairs, batch_size), theta)


def agreement(scored: Scored, theta: float = 5.0) -> Accuracy:
    """`accuracy` from scores already known."""
    reward_a, reward_b, labels = scored.reward_a, scored.reward_b, scored.labels
    likeliest = torch.stack(preference_probabilities(reward_a, reward_b, theta)).argmax(0)
    predicted = torch.tensor([A_BETTER, TIE, B_BETTER])[likeliest]
    decided = labels != TIE
    correct = torch.sign(reward_a - reward_b).long() == labels

    def mean(hits: Tensor) -> float:
        return hits.double().mean().item()

    kinds = sorted(set(scored.kinds) - {""})
    members = {kind: torch.tensor([k == kind for k in scored.kinds]) & decided for kind in kinds}
    return Accuracy(
        mean(predicted == labels),
        mean(correct[decided]),
        len(labels),
        int(decided.sum()),
        {kind: mean(correct[m]) for kind, m in members.items() if m.any()},
        btt_loss(reward_a, reward_b, labels, theta)[0].item(),
    )


def calibration(scored: Scored, theta: float = 5.0, bins: int = 10) -> list[CalibrationBin]:
    """How often predictions came true, by their probability, in `bins` of equal width; empty ones are left out.

    Every pair counts with three predictions: A is better, a tie, B is better.
    """
    chances = torch.stack(preference_probabilities(scored.reward_a, scored.reward_b, theta)).flatten()
    came_true = torch.cat([scored.labels == label for label in (A_BETTER, TIE, B_BETTER)]).double()
    place = (chances * bins).long().clamp(max=bins - 1)
    found = []
    for member in (place == i for i in range(bins)):
        if member.any():
            means = chances[member].mean().item(), came_true[member].mean().item()
            found.append(CalibrationBin(*means, int(member.sum())))
    return found


def calibration_error(found: Sequence[CalibrationBin]) -> float:
    """Mean distance of predicted and observed over all predictions (expected calibration error)."""
    total = sum(part.count for part in found)
    return sum(part.count * abs(part.predicted - part.observed) for part in found) / total if total else float("nan")
