"""Boards: their texts, and that they show all that they are given."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.pictures.boards import compare_board, prompt_board, score_board, verdict
from trainers.prompts import PromptItem

RNG = np.random.default_rng(0)
FACE = RNG.integers(0, 255, (30, 20, 3), np.uint8)
CLIP = np.full((9, 48, 80, 3), (10, 200, 30), np.uint8)


@pytest.mark.parametrize(
    "chances, text",
    [
        ((0.8, 0.1, 0.1), "A preserves the identities better: 80%, tie 10%, B 10%"),
        ((0.05, 0.12, 0.83), "B preserves the identities better: 83%, tie 12%, A 5%"),
        ((0.2, 0.6, 0.2), "about the same: tie 60%, A 20%, B 20%"),
    ],
)
def test_the_verdict_names_the_better_clip_and_its_probability(chances, text):
    assert verdict(chances) == text


def test_a_prompt_board_grows_with_its_rows():
    items = [PromptItem(f"row-{i}", "two people wave " * 12, (FACE, FACE)) for i in range(3)]
    assert prompt_board(items, 3).shape[0] > prompt_board(items[:1], 3).shape[0]


@pytest.mark.parametrize("shape", [(4, 400, 3), (400, 4, 3), (64, 64, 3)])
def test_many_references_of_any_shape_leave_room_for_the_prompt_and_the_clip(shape):
    people = tuple(np.full(shape, 99, np.uint8) for _ in range(9))
    assert prompt_board([PromptItem("row-2", "nine people wave " * 90, people)], 1).shape[1] < 1000
    assert score_board(CLIP, [0, 8], people, 1.0, 10.0).shape[1] < 1000


def test_a_clip_too_low_for_its_references_still_shows_them():
    low = np.full((9, 16, 1024, 3), 77, np.uint8)
    assert (score_board(low, [0, 8], [np.zeros((8, 8, 3), np.uint8)] * 60, 1.0, 10.0) == 77).any()


def test_more_frames_than_fit_a_row_are_in_the_next():
    eight = score_board(CLIP, [0, 1, 2, 3, 4, 5, 6, 7], [FACE], 1.0, 10.0)
    assert eight.shape[1] < 1300 and green(eight) == 2 * green(score_board(CLIP, [0, 3, 5, 8], [FACE], 1.0, 10.0))


def green(board: np.ndarray) -> int:
    return int((board == (10, 200, 30)).all(-1).sum())


def test_a_score_board_shows_as_many_frames_as_the_reward_saw():
    two, four = (green(score_board(CLIP, seen, [FACE], 1.0, 10.0)) for seen in ([0, 8], [0, 3, 5, 8]))
    assert four == 2 * two > 0


def test_a_comparison_shows_both_clips():
    other = np.full_like(CLIP, 77)
    board = compare_board((CLIP, other), ([0, 8], [0, 8]), [FACE], (1.0, 2.0), (0.2, 0.3, 0.5))
    assert green(board) == int((board == 77).all(-1).sum()) > 0
