"""The order of clips."""

from __future__ import annotations

from trainers.faces.ranking import best_first


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
