"""Preference pairs in memory, and how often a reward agrees with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..pictures.reading import Picture
from ..rewards.identity import IdentityReward, preference_probabilities
from .loss import A_BETTER, B_BETTER, INVALID, TIE


@dataclass(frozen=True)
class Pair:
    """Two clips of the same people: `label` 1 (A keeps them better), -1 (B), 0 (tie) or 22 (invalid, ignored).

    Clips are uint8 [F, H, W, 3] at `fps` frames per second; `kind` names where the pair comes from, for reports.
    """

    references: Sequence[Picture]
    video_a: Tensor | np.ndarray
    video_b: Tensor | np.ndarray
    label: int
    fps: float = 10.0
    kind: str = ""


@dataclass(frozen=True)
class Accuracy:
    """Shares of pairs on which a reward agrees with the label.

    `with_ties` predicts the likeliest of win, tie and loss; `without_ties` asks, of the decided pairs, only for the
    sign. `by_kind` is `without_ties` per kind of pair. A share over no pairs is NaN.
    """

    with_ties: float
    without_ties: float
    pairs: int
    decided: int
    by_kind: dict[str, float]


def accuracy(reward: IdentityReward, pairs: Sequence[Pair], theta: float = 5.0, batch_size: int = 32) -> Accuracy:
    """How often `reward` agrees with the labels of `pairs`, without the invalid ones. Raises UserError."""
    pairs = [p for p in pairs if p.label != INVALID]
    videos = [v for p in pairs for v in (p.video_a, p.video_b)]
    scores = reward.score(
        videos, [p.references for p in pairs for _ in "ab"], [p.fps for p in pairs for _ in "ab"], batch_size
    )
    return agreement(scores[0::2], scores[1::2], torch.tensor([p.label for p in pairs]), [p.kind for p in pairs], theta)


def agreement(
    reward_a: Tensor, reward_b: Tensor, labels: Tensor, kinds: Sequence[str] = (), theta: float = 5.0
) -> Accuracy:
    """`accuracy` from scores [N] already known; labels int64 [N] without invalid ones."""
    likeliest = torch.stack(preference_probabilities(reward_a, reward_b, theta)).argmax(0)
    predicted = torch.tensor([A_BETTER, TIE, B_BETTER])[likeliest]
    decided = labels != TIE
    correct = torch.sign(reward_a - reward_b).long() == labels

    def mean(hits: Tensor) -> float:
        return hits.double().mean().item()

    members = {kind: torch.tensor([k == kind for k in kinds]) & decided for kind in sorted(set(kinds)) if kind}
    return Accuracy(
        mean(predicted == labels),
        mean(correct[decided]),
        len(labels),
        int(decided.sum()),
        {kind: mean(correct[m]) for kind, m in members.items() if m.any()},
    )
