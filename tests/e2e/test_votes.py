"""Votes in a real editor by keyboard: kept at once, not lost by a reload."""

from __future__ import annotations

from collections import Counter

import pytest

from trainers.preference.folder import PairFolder
from trainers.tinyworld.making.preference_pairs import held_out_pairs


@pytest.fixture(scope="module")
def folder(comfyui) -> PairFolder:
    """Sixteen pairs of TinyWorld, without votes."""
    folder = PairFolder(comfyui.base / "output" / "identity_grpo_pairs" / "votes")
    for pair in held_out_pairs(16, seed=5):
        clips = (pair.video_a.numpy(), pair.video_b.numpy())
        folder.add(clips, [face.numpy() for face in pair.references], "two people wave", pair.kind, pair.fps)
    return folder


@pytest.fixture(scope="module")
def voting(comfyui, browse, folder) -> dict:
    """What the dialog showed while it was used."""
    return browse("vote.cjs", "", folder.path.name, comfyui.base / "vote.png")


def test_the_dialog_shows_clips_people_and_progress(voting):
    assert voting["first"]["status"] == "0 of 16 pairs" and voting["first"]["images"] >= 2
    assert voting["problems"] == []


def test_every_key_is_a_vote_on_the_disk(voting, folder):
    assert voting["twelve"]["status"].startswith("11 of 16 pairs, same verdict again")
    verdicts = Counter(vote.verdict for vote in folder.read().votes.values())
    assert verdicts["tie"] == 3 and sum(verdicts.values()) == 12


def test_the_keys_vote_also_after_a_click_on_a_button(voting):
    assert (
        voting["clicked"]["status"].startswith("13 of 16 pairs") and voting["clicked"]["line"] == "saved: B is better"
    )


def test_a_second_window_does_not_say_saved_of_a_vote_that_the_first_has_given(voting):
    assert voting["second"]["line"].startswith("this question was answered already")


def test_the_button_is_no_input_of_the_queued_node(voting):
    assert "name" in voting["sent"] and "Vote" not in voting["sent"]


def test_undo_takes_the_last_vote_back(voting):
    assert voting["undone"]["status"].startswith("10 of 16 pairs")


def test_the_arrow_keys_step_through_both_clips(voting):
    assert voting["stepped"]


def test_a_reload_in_the_middle_loses_nothing(voting, folder):
    assert voting["reloaded"]["status"].startswith("11 of 16 pairs")


def test_the_editors_own_shortcuts_do_nothing_meanwhile(voting):
    assert voting["twelve"]["nodes"] == voting["first"]["nodes"]


def test_a_hundred_votes_take_less_than_five_minutes(voting):
    assert voting["seconds"] / 12 * 100 < 300
