"""The pictures of a report and of a ranking."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers.faces.board import COLOURS, STRANGER, face_board, ranking_board
from trainers.faces.report import report


@pytest.fixture(scope="module")
def case(portraits, scene):
    clip = np.stack([scene(("collins", 30, 40, 140), ("hopper", 240, 40, 140))] * 2)
    torch.set_num_threads(1)
    return clip, report(torch.from_numpy(clip), [portraits["collins"], portraits["obama"]], 3.0)


def has(board: np.ndarray, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return bool((board == wanted).all(-1).sum() > 20)


def test_people_have_their_colours_and_strangers_are_red(case):
    board = face_board(*case, "a title")
    assert board.dtype == np.uint8 and board.ndim == 3
    assert has(board, COLOURS[0]) and has(board, STRANGER)


def test_every_person_has_a_strip(case):
    clip, found = case
    assert face_board(clip, found).shape[0] > 2 * 60 + clip.shape[1] // 2


def test_a_ranking_shows_every_clip(case):
    clip = case[0]
    one, three = (ranking_board([clip] * n, list(range(n)), ["note"] * n) for n in (1, 3))
    assert three.shape[1] == one.shape[1] and three.shape[0] > 2.5 * one.shape[0]
