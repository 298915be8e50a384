"""What a person is asked: every pair once, some again with swapped sides, the same after a reload."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainers.errors import UserError
from trainers.preference.folder import PairFolder
from trainers.preference.voting import (
    REPEAT_EVERY,
    answer,
    next_question,
    voting_progress,
)


@pytest.fixture
def folder(tmp_path: Path) -> PairFolder:
    """Thirty pairs of one tiny clip each against another."""
    folder = PairFolder(tmp_path / "pairs")
    for i in range(30):
        clips = tuple(np.full((1, 16, 16, 3), value, np.uint8) for value in (i, 100 + i))
        folder.add(clips, [clips[0][0]], fps=8.0)
    return folder


def vote_until(folder: PairFolder, votes: int, who: str = "anna") -> list:
    asked = []
    for _ in range(votes):
        question = next_question(folder.read(), who)
        answer(folder, question.pair, "A", who, question.turn, question.swapped)
        asked.append(question)
    return asked


def test_every_tenth_question_repeats_a_pair_with_its_sides_swapped(folder: PairFolder) -> None:
    asked = vote_until(folder, 20)
    repeated = [i for i, question in enumerate(asked) if question.repeated]
    assert repeated == [REPEAT_EVERY - 1, 2 * REPEAT_EVERY - 1]
    for i in repeated:
        earlier = next(question for question in asked[:i] if question.pair == asked[i].pair)
        assert earlier.swapped != asked[i].swapped
    fresh = [question.pair for question in asked if not question.repeated]
    assert len(set(fresh)) == len(fresh)
    found = voting_progress(folder.read(), "anna")
    assert (found.voted, found.pairs, found.agreement.swapped) == (18, 30, 2)
    assert found.agreement.same == 0  # always the left one: never the same clip


def test_the_same_question_is_asked_until_it_is_answered(folder: PairFolder) -> None:
    vote_until(folder, 4)
    first = next_question(folder.read(), "anna")
    assert first == next_question(PairFolder(folder.path).read(), "anna")
    assert next_question(folder.read(), "ben").turn == 0


def test_the_question_after_is_what_is_asked_then(folder: PairFolder) -> None:
    for _ in range(12):
        question = next_question(folder.read(), "anna")
        following = next_question(folder.read(), "anna", after=question.pair)
        answer(folder, question.pair, "tie", "anna", question.turn, question.swapped)
        assert next_question(folder.read(), "anna") == following


def test_a_second_click_on_the_same_question_is_refused(folder: PairFolder) -> None:
    question = next_question(folder.read(), "anna")
    answer(folder, question.pair, "A", "anna", question.turn, question.swapped)
    with pytest.raises(UserError, match="answered already"):
        answer(folder, question.pair, "A", "anna", question.turn, question.swapped)
    assert len(folder.read().votes) == 1


def test_after_an_undo_the_same_question_is_asked_again(folder: PairFolder) -> None:
    asked = vote_until(folder, 10)
    folder.undo("anna")
    assert next_question(folder.read(), "anna") == asked[-1]


def test_all_pairs_end_the_questions(folder: PairFolder) -> None:
    while (question := next_question(folder.read(), "anna")) is not None:
        answer(folder, question.pair, "skip", "anna", question.turn, question.swapped)
    assert voting_progress(folder.read(), "anna").voted == 30
