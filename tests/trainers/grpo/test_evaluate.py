"""Held-out measurement against the untouched policy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.config import RewardConfig, make_config
from trainers.grpo.evaluate import (
    NORMAL_95,
    Measurement,
    compare,
    evaluation_row,
    evaluation_size,
    held_out_videos,
    measure,
    reward_up_judge_down,
    student_95,
)
from trainers.policies.load import load_policy
from trainers.prompts import PromptItem, load_prompt_set
from trainers.rewards.load import load_reward
from trainers.runs.inputs import tinyworld_judge

SCORES = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def config(small_models):
    return make_config(
        "tiny", {**small_models, "video": {"height": 16, "width": 16, "frames": 5}, "evaluation": {"steps": 2}}
    )


@pytest.fixture(scope="module")
def reward(small_models):
    return load_reward(RewardConfig(**small_models["reward"]), "cpu")


def test_wins_ties_and_losses_are_paired():
    found = compare([1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 2.5, 4.5])
    assert (found.win, found.tie, found.loss, found.margin) == (0.5, 0.25, 0.25, 0.25)


@given(SCORES)
def test_shares_add_up_and_the_interval_holds_the_share(pairs):
    found = compare(*zip(*pairs, strict=True))
    assert found.win + found.tie + found.loss == pytest.approx(1)
    assert found.win_low <= found.win <= found.win_high


@given(SCORES)
def test_swapping_the_two_swaps_wins_and_losses(pairs):
    before, after = zip(*pairs, strict=True)
    there, back = compare(before, after), compare(after, before)
    assert (there.win, there.loss, there.margin) == (back.loss, back.win, -back.margin)


def test_the_interval_narrows_with_the_items():
    few, many = compare([0, 0], [1, -1]), compare([0] * 200, [1, -1] * 100)
    assert (few.win_low, few.win_high) == pytest.approx((0.0945, 0.9055), abs=1e-4)
    assert 0.4 < many.win_low < 0.5 < many.win_high < 0.6


def test_few_items_that_all_agree_leave_room_for_others():
    assert compare([0, 0], [1, 1]).win_low == pytest.approx(0.342, abs=1e-3)


def test_the_interval_of_the_margin_is_students():
    found = compare([0] * 4, [1, 2, 3, 4])
    assert (found.margin_low, found.margin_high) == pytest.approx((2.5 - 2.0542, 2.5 + 2.0542), abs=0.005)
    assert student_95(10**9) == pytest.approx(NORMAL_95)


def test_of_two_items_the_margin_has_no_interval():
    assert compare([0, 0], [1, 2]).margin_low is None


def test_a_row_has_the_mean_identity_of_each_person_over_the_items_that_have_one():
    found = replace(measured([1.0, 1.0], [0.5, 0.6]), people=[[0.5], [0.25, 0.75]])
    row = evaluation_row(3, measured([1.0, 1.0], [0.5, 0.6]), found)
    assert (row["identity_person_1"], row["identity_person_2"]) == (0.375, 0.75)


def test_the_same_items_and_noise_come_again_whoever_stands_beside(small_models, config):
    policy = load_policy(small_models["policy"]["source"], torch.float32, "cpu")
    items = load_prompt_set(small_models["prompts"])[:3]
    together, alone = held_out_videos(policy, items, config), held_out_videos(policy, items[1:2], config)
    assert (together[1].int() - alone[0].int()).abs().max() <= 1
    assert torch.equal(together, held_out_videos(policy, items, config))
    assert not torch.equal(together[0], together[1])


def test_a_process_without_items_has_nothing_to_say(small_models, config, reward):
    policy = load_policy(small_models["policy"]["source"], torch.float32, "cpu")
    found = measure(reward, held_out_videos(policy, (), config), (), config)
    assert (found.ids, found.rewards, found.identity) == ([], [], None)


def test_defect_22_text_alignment_is_measured_beside_the_reward_where_a_world_can(config, reward):
    from trainers.tinyworld.prompts import tiny_prompt_set

    items = tiny_prompt_set("held_out", 2)
    found = measure(reward, torch.zeros(2, 5, 48, 80, 3, dtype=torch.uint8), items, config, tinyworld_judge)
    assert len(found.rewards) == len(found.identity) == len(found.alignment) == 2
    assert found.identity == [0.0, 0.0]
    assert [len(people) for people in found.people] == [len(item.references) for item in items]


def test_a_prompt_set_of_pictures_is_measured_by_its_reward_alone(config, reward, small_models):
    items = load_prompt_set(small_models["prompts"])[:1]
    found = measure(reward, torch.zeros(1, 5, 16, 16, 3, dtype=torch.uint8), items, config)
    assert len(found.rewards) == 1 and found.identity is None and found.alignment is None


def measured(rewards: list[float], identity: list[float] | None) -> Measurement:
    return Measurement([str(i) for i in range(len(rewards))], rewards, identity)


@pytest.mark.parametrize(
    "reward, identity, alarm",
    [
        (0.5, -0.1, True),
        (0.5, 0.1, False),
        (-0.5, -0.1, False),
        (0.5, -0.001, False),
        (0.001, -0.1, False),
    ],
)
def test_the_alarm_needs_the_reward_to_rise_and_the_judge_to_fall_beyond_the_noise(reward, identity, alarm):
    noise = np.random.default_rng(0).normal(0, 0.05, (4, 32))
    before = measured((1 + noise[0]).tolist(), (0.6 + noise[1]).tolist())
    after = measured((1 + reward + noise[2]).tolist(), (0.6 + identity + noise[3]).tolist())
    found = reward_up_judge_down(before, after)
    assert (found is not None) == alarm
    if found:
        assert found == pytest.approx((reward, identity), abs=0.05)


def test_without_a_judge_there_is_no_alarm():
    assert reward_up_judge_down(measured([1.0] * 4, None), measured([2.0] * 4, None)) is None


def test_evaluation_may_have_a_size_of_its_own():
    assert evaluation_size(make_config("paper")).frames == 81
    assert evaluation_size(make_config("tiny")).frames == 9


@pytest.mark.parametrize(
    "changed",
    [
        {"ids": ["b", "a"]},
        {"rewards": [1.0]},
        {"rewards": 3.0},
        {"rewards": [1.0, None]},
        {"identity": ["x", "y"]},
        {"people": [[0.5]]},
        {"people": [[0.5], ["x"]]},
    ],
)
def test_a_measurement_that_was_damaged_is_not_of_the_items(changed):
    items = [PromptItem(name, "two people wave", ()) for name in "ab"]
    whole = {"ids": ["a", "b"], "rewards": [1.0, 2.0], "identity": [0.5, 0.6], "people": [[0.5], [0.4, 0.8]]}
    assert Measurement(**whole).is_of(items) and not Measurement(**(whole | changed)).is_of(items)
