import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.grpo.advantages import combined_advantages, group_advantages

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


# --- several rewards -----------------------------------------------------------------------------------------------

SEVERAL = st.lists(
    st.tuples(st.integers(0, 3), st.floats(-50, 50, width=32), st.floats(-1, 1, width=32)), min_size=2, max_size=30
)


def gdpo(rewards: np.ndarray, weights: list[float], groups: np.ndarray) -> np.ndarray:
    """Written anew from the paper's three steps, in float64."""
    total = np.zeros(len(rewards))
    for column, weight in zip(rewards.T, weights, strict=True):
        for group in np.unique(groups):
            own = column[groups == group]
            total[groups == group] += weight * (own - own.mean()) / (own.std() + 1e-4)
    return (total - total.mean()) / (total.std() + 1e-4)


@given(SEVERAL, st.sampled_from([(1.0, 1.0), (2.0, 0.25), (0.5, 3.0)]))
@settings(max_examples=60, deadline=None)
def test_several_rewards_are_normalised_one_by_one_and_their_sum_again(rows, weights):
    groups, *columns = (np.array(column) for column in zip(*rows, strict=True))
    rewards = np.stack([column.astype(np.float64) for column in columns], 1)
    found = combined_advantages(rewards, weights, groups)
    np.testing.assert_allclose(found.numpy(), gdpo(rewards, weights, groups), atol=1e-6)


@given(REWARDS, st.booleans(), st.floats(0.01, 100))
@settings(max_examples=30, deadline=None)
def test_one_reward_alone_gives_its_own_advantages_to_the_bit(pairs, global_std, weight):
    groups, rewards = zip(*pairs, strict=True)
    pair = np.stack([np.array(rewards, np.float64), np.arange(len(rewards), dtype=np.float64)], 1)
    expected = group_advantages(list(rewards), groups, global_std)
    assert torch.equal(combined_advantages(pair, [weight, 0.0], groups, global_std), expected)
    assert torch.equal(combined_advantages(pair[:, :1], [1.0], groups, global_std), expected)


def test_the_unit_of_a_reward_does_not_matter():
    rewards = torch.tensor([[1.0, 0.1], [3.0, 0.4], [2.0, 0.2], [9.0, 0.9]], dtype=torch.float64)
    found, other = (
        combined_advantages(rewards * torch.tensor([unit, 1.0]), [1, 1], [0, 0, 1, 1], eps=0.0) for unit in (1, 1000)
    )
    torch.testing.assert_close(found, other)


def test_a_larger_weight_decides_where_two_rewards_disagree():
    rewards = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    first, second = (combined_advantages(rewards, weights, [0, 0]) for weights in ([2, 1], [1, 2]))
    assert first[0] < 0 < first[1] and second[1] < 0 < second[0]


def test_a_group_without_spread_in_any_reward_is_exactly_zero_and_one_with_spread_in_one_is_not():
    rewards = torch.tensor([[0.1, 0.3], [0.1, 0.3], [0.1, 0.3], [0.5, 0.2], [0.5, 0.7], [0.5, 0.1]])
    found = combined_advantages(rewards, [1.0, 0.5], [0, 0, 0, 1, 1, 1])
    assert found[:3].tolist() == [0.0, 0.0, 0.0] and (found[3:] != 0).all()


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0]])
def test_weights_that_fit_no_reward_are_refused(weights):
    with pytest.raises(ValueError, match="one weight per reward"):
        combined_advantages(torch.zeros(2, 2), weights, [0, 0])
