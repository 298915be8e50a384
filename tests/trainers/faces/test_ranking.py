"""Which clips are right, and their order."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from trainers.faces.ranking import best_first, is_right
from trainers.faces.report import Alarm


def test_the_highest_headline_is_first_and_what_cannot_be_judged_last():
    assert best_first([0.0, None, 0.9], None) == [2, 0, 1]


def test_equal_clips_keep_their_order():
    assert best_first([0.5, 0.5, 0.6], None) == [2, 0, 1]


def test_rewards_alone():
    assert best_first(None, [-3.0, 2.0, 0.0]) == [1, 2, 0]


def test_both_are_the_mean_of_ranks():
    assert best_first([0.9, 0.8, 0.1], [0.0, 5.0, 1.0]) == [1, 0, 2]


def test_where_both_ranks_are_equal_the_faces_decide():
    assert best_first([0.2, 0.9], [7.0, 1.0]) == [1, 0]


@pytest.mark.parametrize(
    "headline, alarms, right",
    [
        (0.8, [], True),
        (0.8, ["drift", "copy"], True),
        (0.69, [], False),
        (None, [], False),
        *((0.9, [kind], False) for kind in ("swap", "missing", "duplicate", "stranger")),
    ],
)
def test_a_clip_is_right_with_a_high_headline_and_nobody_wrong(headline, alarms, right):
    found = SimpleNamespace(headline=headline, alarms=tuple(Alarm(kind, "") for kind in alarms))
    assert is_right(found, 0.7) == right
