"""Agreement of scores with labels."""

from __future__ import annotations

import math

import pytest
import torch

from trainers.preference.loss import btt_loss
from trainers.preference.pairs import Scored, agreement, calibration, calibration_error
from trainers.rewards.identity import preference_probabilities

LABELS = torch.tensor([1, 1, -1, 0, 0])
SCORES_A = torch.tensor([9.0, 0.1, 3.0, 0.0, 7.0])
SCORES_B = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.0])


def scored(a: torch.Tensor, b: torch.Tensor, labels: torch.Tensor, kinds: list[str] | None = None) -> Scored:
    return Scored(a, b, labels, kinds or [""] * len(labels))


def test_only_the_sign_counts_without_ties() -> None:
    found = agreement(scored(SCORES_A, SCORES_B, LABELS))
    assert (found.pairs, found.decided) == (5, 3)
    assert found.without_ties == pytest.approx(2 / 3)


def test_the_likeliest_of_three_counts_with_ties() -> None:
    """Right: the clear win and the close tie. Wrong: a win too close to call, a loss, a tie far apart."""
    assert agreement(scored(SCORES_A, SCORES_B, LABELS)).with_ties == pytest.approx(2 / 5)


def test_equal_scores_never_count_as_a_right_decision() -> None:
    assert agreement(scored(torch.zeros(2), torch.zeros(2), torch.tensor([1, -1]))).without_ties == 0


def test_kinds_are_reported_on_their_own() -> None:
    found = agreement(scored(SCORES_A, SCORES_B, LABELS, ["swap", "blend", "blend", "swap", "tie"]))
    assert found.by_kind == {"blend": 0.5, "swap": 1.0}


def test_a_share_over_nothing_is_nan() -> None:
    assert math.isnan(agreement(scored(torch.zeros(1), torch.zeros(1), torch.tensor([0]))).without_ties)


def test_labels_sampled_from_the_rewards_own_probabilities_are_calibrated() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (3 * torch.randn(20_000, generator=generator) for _ in "ab")
    chances = torch.stack(preference_probabilities(a, b), 1)
    labels = torch.tensor([1, 0, -1])[torch.multinomial(chances, 1, generator=generator).flatten()]
    found = calibration(scored(a, b, labels))
    assert sum(part.count for part in found) == 3 * len(labels)
    assert calibration_error(found) < 0.01
    assert calibration_error(calibration(scored(3 * a, 3 * b, labels))) > 0.05


def test_the_loss_is_that_of_the_training() -> None:
    found = agreement(scored(SCORES_A, SCORES_B, LABELS))
    assert found.loss == pytest.approx(btt_loss(SCORES_A, SCORES_B, LABELS)[0].item())
