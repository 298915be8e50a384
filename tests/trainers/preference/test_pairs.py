"""Agreement of scores with labels."""

from __future__ import annotations

import math

import pytest
import torch

from trainers.preference.pairs import agreement

LABELS = torch.tensor([1, 1, -1, 0, 0])
SCORES_A = torch.tensor([9.0, 0.1, 3.0, 0.0, 7.0])
SCORES_B = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.0])


def test_only_the_sign_counts_without_ties() -> None:
    found = agreement(SCORES_A, SCORES_B, LABELS)
    assert (found.pairs, found.decided) == (5, 3)
    assert found.without_ties == pytest.approx(2 / 3)


def test_the_likeliest_of_three_counts_with_ties() -> None:
    """Right: the clear win and the close tie. Wrong: a win too close to call, a loss, a tie far apart."""
    assert agreement(SCORES_A, SCORES_B, LABELS).with_ties == pytest.approx(2 / 5)


def test_equal_scores_never_count_as_a_right_decision() -> None:
    assert agreement(torch.zeros(2), torch.zeros(2), torch.tensor([1, -1])).without_ties == 0


def test_kinds_are_reported_on_their_own() -> None:
    found = agreement(SCORES_A, SCORES_B, LABELS, ["swap", "blend", "blend", "swap", "tie"])
    assert found.by_kind == {"blend": 0.5, "swap": 1.0}


def test_a_share_over_nothing_is_nan() -> None:
    assert math.isnan(agreement(torch.zeros(1), torch.zeros(1), torch.tensor([0])).without_ties)
