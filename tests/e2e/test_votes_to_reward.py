"""The template of votes in a real editor, from its opening to its end: vote, train, compare the rewards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from comfy_server import deleting_runs, runs_in
from trainers.preference.folder import PairFolder
from trainers.tinyworld.making.preference_pairs import held_out_pairs

OPPOSITE = {1: "B", -1: "A"}


@pytest.fixture(scope="module")
def seen(comfyui, browse, tmp_path_factory) -> Iterator[dict]:
    """What the editor showed, with votes against TinyWorld's truth, so that the new reward differs from the old one."""
    folder = PairFolder(comfyui.base / "output" / "identity_grpo_pairs" / "taste")
    verdicts = {}
    for pair in held_out_pairs(12, seed=9):
        clips = (pair.video_a.numpy(), pair.video_b.numpy())
        record = folder.add(clips, [face.numpy() for face in pair.references], "two people", pair.kind, pair.fps)
        verdicts[record.pair] = OPPOSITE.get(pair.label, "t")
    file = tmp_path_factory.mktemp("votes") / "verdicts.json"
    file.write_text(json.dumps(verdicts))
    address = "?template=12_votes_become_a_reward&source=identity-grpo"
    with deleting_runs(comfyui):
        found = browse("votes_to_reward.cjs", address, folder.path.name, file)
        (found["run"],) = [run.status().state for run in runs_in(comfyui.base) if run.kind == "reward"]
        yield found


def test_a_queued_graph_adds_a_pair_and_counts_the_votes(seen):
    assert "13 pairs, 0 votes" in seen["collected"][0] and "0 of 8 pairs have votes" in seen["collected"][1]


def test_the_graph_ends_while_the_reward_is_trained(seen):
    strip, comparison = seen["started"]
    assert re.search("starting|training|step|iteration", strip) and not comparison


def test_it_is_queued_again_at_the_end_and_the_two_rewards_are_compared(seen):
    assert seen["run"] == "finished" and "finished" in seen["strip"]
    pairs, *numbers = seen["compared"].splitlines()
    assert re.match(r"[3-9] held-out pairs of reward-", pairs) and "agreement with the votes: old" in numbers[0]


def test_the_clips_on_which_they_disagree_are_shown(seen):
    assert int(re.search(r"different clips of (\d+) pairs", seen["compared"])[1]) > 0
    ((width, height),) = seen["shown"]
    assert width > 500 and height > 300  # a title alone is lower


def test_nothing_fails_on_the_page(seen):
    assert seen["problems"] == []
