import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.grpo.advantages import group_advantages

REWARDS = st.lists(st.tuples(st.integers(0, 4), st.floats(-50, 50, width=32)), min_size=1, max_size=40)


@given(REWARDS, st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_group_is_normalised_by_its_own_mean(pairs, global_std):
    groups, rewards = zip(*pairs, strict=True)
    found = group_advantages(list(rewards), groups, global_std).numpy()
    values = np.array(rewards, np.float64)
    for g in set(groups):
        own = values[np.array(groups) == g]
        spread = values.std() if global_std else own.std()
        expected = (own - own.mean()) / (spread + 1e-4) if len(set(own)) > 1 else np.zeros(len(own))
        np.testing.assert_allclose(found[np.array(groups) == g], expected, atol=1e-12)


@given(REWARDS, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_order_of_the_samples_does_not_matter(pairs, random):
    order = list(range(len(pairs)))
    random.shuffle(order)
    groups, rewards = zip(*pairs, strict=True)
    straight = group_advantages(list(rewards), groups)
    shuffled = group_advantages([rewards[i] for i in order], [groups[i] for i in order])
    torch.testing.assert_close(shuffled, straight[order], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("global_std", [False, True])
def test_defect_13_a_group_without_spread_keeps_its_place_at_exactly_zero(global_std):
    rewards = torch.tensor([0.1, 1.0, 0.1, 2.0, 0.1])
    found = group_advantages(rewards, ["even", "other", "even", "other", "even"], global_std)
    assert found.shape == (5,)
    assert found[[0, 2, 4]].tolist() == [0.0, 0.0, 0.0]
    assert found[1] < 0 < found[3]


def test_a_group_of_one_says_nothing():
    assert group_advantages([3.0, 1.0, 2.0], [7, 8, 8])[0] == 0


def test_defect_8_items_with_equal_texts_are_different_groups():
    text = "two people at a table"
    items = [(text, "ann.png"), (text, "ann.png"), (text, "bob.png"), (text, "bob.png")]
    merged = group_advantages([0.0, 1.0, 10.0, 11.0], [text] * 4)
    apart = group_advantages([0.0, 1.0, 10.0, 11.0], items)
    assert merged[1] < 0 < apart[1]


def test_advantages_are_float64():
    assert group_advantages(torch.tensor([1.0, 2.0]), torch.tensor([0, 0])).dtype == torch.float64


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_reward_that_is_no_number_is_named(bad):
    with pytest.raises(ValueError, match="reward 2 is"):
        group_advantages([1.0, 2.0, bad, 3.0], [0, 0, 1, 1])


def test_one_group_id_per_reward():
    with pytest.raises(ValueError, match="3 group ids"):
        group_advantages([1.0, 2.0], [0, 0, 1])
