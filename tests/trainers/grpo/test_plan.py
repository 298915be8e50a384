"""The plan is a function of the seed."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.config import RolloutConfig
from trainers.diffusion.noise import noise_generators, unit_noise
from trainers.grpo.plan import plan_items, plan_iteration, plan_windows
from trainers.ranks import rank_slice


def config(**changes) -> RolloutConfig:
    return RolloutConfig(**({"steps": 8, "groups_per_update": 3, "group_size": 2, "window": {"size": 2}} | changes))


def test_every_item_comes_up_once_a_pass():
    chosen = [i for iteration in range(5) for i in plan_items(7, iteration, 4, 10)]
    assert Counter(chosen) == {i: 2 for i in range(10)}


def test_iterations_walk_different_items():
    assert plan_items(7, 0, 8, 100) != plan_items(7, 1, 8, 100)


def test_noise_differs_inside_a_group_and_between_iterations():
    seeds = [p.seed for iteration in range(3) for p in plan_iteration(0, iteration, config(), 50)]
    assert len(set(seeds)) == len(seeds)


def test_the_plan_repeats():
    assert plan_iteration(3, 4, config(), 50) == plan_iteration(3, 4, config(), 50)


def test_another_seed_walks_other_items_with_other_noise():
    first, second = (plan_iteration(seed, 0, config(), 50) for seed in (0, 1))
    assert [p.item for p in first] != [p.item for p in second]
    assert not {p.seed for p in first} & {p.seed for p in second}


@given(st.integers(0, 3), st.integers(3, 50))
def test_defect_7_every_group_of_every_iteration_is_one_item_of_full_size(iteration, items):
    """Also of the first: the published sampler burnt two epochs of prompts."""
    plan = plan_iteration(0, iteration, config(), items)
    groups = {g: [p for p in plan if p.group == g] for g in {p.group for p in plan}}
    assert len(groups) == config().groups
    assert all(len(members) == 2 and len({p.item for p in members}) == 1 for members in groups.values())


def test_noise_does_not_depend_on_the_batch():
    together = unit_noise(noise_generators([1, 2, 3]), (4, 5), torch.device("cpu"))
    alone = unit_noise(noise_generators([2]), (4, 5), torch.device("cpu"))
    assert torch.equal(together[1:2], alone)


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(4, 8))
def test_a_random_window_has_neighbours_in_its_range(iteration, size, last):
    window = plan_windows(1, iteration, config(window={"kind": "random", "size": size, "last": last}))[0]
    assert window == tuple(range(window[0], window[0] + size)) and window[0] >= 0 and window[-1] < last


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(4, 8))
def test_scattered_steps_are_distinct_ordered_and_in_range(iteration, size, last):
    window = plan_windows(1, iteration, config(window={"kind": "scattered", "size": size, "last": last}))[0]
    assert len(set(window)) == size and list(window) == sorted(window) and window[0] >= 0 and window[-1] < last


def test_scattered_steps_are_chosen_evenly():
    scattered = config(window={"kind": "scattered", "size": 2, "last": 4})
    counts = Counter(step for i in range(2000) for step in plan_windows(1, i, scattered)[0])
    assert all(count == pytest.approx(1000, rel=0.1) for count in counts.values()) and len(counts) == 4


@pytest.mark.parametrize("kind", ["random", "scattered"])
def test_groups_have_windows_of_their_own_where_asked(kind):
    own = plan_windows(1, 0, config(groups_per_update=40, window={"kind": kind, "size": 2, "last": 6, "per": "group"}))
    shared = plan_windows(1, 0, config(groups_per_update=40, window={"kind": kind, "size": 2, "last": 6}))
    assert len(own) == len(shared) == 80 and len(set(own)) > 3 and len(set(shared)) == 1


def test_a_sliding_window_moves_and_wraps():
    sliding = config(window={"kind": "sliding", "size": 2, "last": 4, "slide_every": 2})
    assert [plan_windows(0, i, sliding)[0][0] for i in range(8)] == [0, 0, 1, 1, 2, 2, 0, 0]


def test_defect_12_the_recipe_leaves_the_last_step_to_the_ode():
    """Noise added at the last step stays in the video."""
    assert not any(24 in window for window in plan_windows(0, 0, RolloutConfig()))


@pytest.mark.parametrize("window", [{"kind": "all", "size": 8}, {"kind": "random", "size": 2, "last": 8}])
def test_defect_12_cps_does_not_train_its_last_step_which_has_no_noise(window):
    with pytest.raises(ValueError, match="cannot be trained: lower window"):
        config(dynamics="cps", window=window)
    assert config(dynamics="flow_sde", window=window)
    assert config(dynamics="cps", window=window | ({"size": 7} if window["kind"] == "all" else {"last": 7}))


@given(st.integers(0, 200), st.integers(1, 9))
def test_slices_of_equal_costs_cover_everything_once_and_differ_by_one(count, processes):
    slices = [rank_slice([3] * count, rank, processes) for rank in range(processes)]
    assert [i for s in slices for i in s] == list(range(count))
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


@given(st.lists(st.integers(1, 30), max_size=60), st.integers(1, 9))
def test_sums_of_slices_differ_by_at_most_one_cost(costs, processes):
    slices = [rank_slice(costs, rank, processes) for rank in range(processes)]
    assert sorted(i for s in slices for i in s) == list(range(len(costs)))
    sums = [sum(costs[i] for i in s) for s in slices]
    assert max(sums) - min(sums) <= max(costs, default=0)


def test_both_kinds_of_videos_are_shared_out_evenly_and_neighbours_stay_together():
    assert [rank_slice([12] * 4 + [10] * 4, rank, 2) for rank in range(2)] == [[0, 1, 4, 5], [2, 3, 6, 7]]
