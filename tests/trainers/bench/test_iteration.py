"""How often each phase counts in an iteration, by presets whose numbers are written out."""

from __future__ import annotations

import pytest

from trainers.bench.iteration import repetitions, seconds_per_video
from trainers.config import make_config


def test_paper_samples_25_steps_of_which_24_are_trained():
    counts = repetitions(make_config("paper"))
    assert (counts["ode"], counts["sde"], counts["train"]) == (1, 24, 24)
    assert counts["decode"] == 1


def test_what_is_shared_counts_by_those_who_share_it():
    counts = repetitions(make_config("paper", {"checkpoint": {"every": 2}}))
    assert counts["text"] == counts["references"] == 1 / 8
    assert counts["optimiser"] == 1 / 128
    assert counts["checkpoint"] == 1 / (2 * 128 * 2)


def test_evaluation_counts_by_the_videos_between_two():
    counts = repetitions(make_config("paper"))
    held_out = 32 / (10 * 2 * 128)
    assert counts["evaluate"] == 50 * held_out and counts["evaluate-decode"] == held_out
    assert counts["score"] == 1 + held_out


def test_phases_add_up():
    config = make_config("fast", {"evaluation": {"items": 128, "every": 1, "steps": 20}})
    seconds = {"text": 8, "references": 16, "ode": 1, "sde": 2, "decode": 3, "score": 4, "train": 5}
    seconds |= {"optimiser": 128, "checkpoint": 256, "evaluate": 6, "evaluate-decode": 7}
    parts, missing = seconds_per_video(config, seconds)
    assert not missing
    assert sum(parts.values()) == pytest.approx(1 + 2 + 9 * 1 + 2 + 3 + 2 * 4 + 5 + 1 + 2 + 20 * 6 + 7)


def test_a_phase_without_a_measurement_is_missing():
    assert seconds_per_video(make_config("fast"), {"ode": 1.0})[1] == [
        *("text", "references", "sde", "decode", "score", "train", "optimiser", "checkpoint"),
        *("evaluate", "evaluate-decode"),
    ]


def test_a_phase_that_the_recipe_lacks_is_not_missed():
    config = make_config(
        "fast", {"rollout": {"dynamics": "flow_sde", "steps": 4, "window": {"kind": "all", "size": 4}}}
    )
    assert "ode" not in seconds_per_video(config, {})[1]
