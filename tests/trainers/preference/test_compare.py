"""Two rewards on the same pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers.preference.compare import compare_rewards, comparison_board
from trainers.preference.pairs import Pair, Scored

LABELS = [1, -1, 0, 1]


def scored(margins: list[float]) -> Scored:
    return Scored(torch.tensor(margins), torch.zeros(len(margins)), torch.tensor(LABELS), [""] * len(margins))


@pytest.fixture
def pairs() -> list[Pair]:
    clip, face = np.full((4, 20, 30, 3), 90, np.uint8), np.full((20, 20, 3), 200, np.uint8)
    return [Pair([face], clip, clip, label) for label in LABELS]


def test_pairs_of_which_they_prefer_different_clips_are_in_order_those_without_a_verdict_last():
    found = compare_rewards(scored([-1.0, -2.0, 1.0, -3.0]), scored([2.0, -1.0, -9.0, 0.5]))
    assert found.places == [3, 0, 2] and found.decided == 2 and found.right == (0, 2)
    assert [part.without_ties for part in found.accuracies] == pytest.approx([1 / 3, 1.0])


def test_the_board_shows_as_many_pairs_as_it_may(pairs):
    found = compare_rewards(scored([-1.0, -2.0, 1.0, -3.0]), scored([2.0, -1.0, -9.0, 0.5]))
    heights = [comparison_board(found, pairs, ("old", "new"), most).height for most in (1, 2, 3, 9)]
    assert heights[0] < heights[1] < heights[2] == heights[3]


def test_rewards_that_agree_leave_a_board_of_one_line(pairs):
    same = compare_rewards(scored([1.0, -2.0, 1.0, 3.0]), scored([2.0, -1.0, 9.0, 0.5]))
    assert same.places == [] and comparison_board(same, pairs, ("old", "new"), 9).height < 80
