"""Rollouts keep what training needs, and no more."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainers.config import PolicyConfig, RolloutConfig
from trainers.diffusion.sampling import micro_batches, sample_videos
from trainers.diffusion.schedule import flow_schedule
from trainers.grpo.rollout import roll_out
from trainers.policies.base import Guidance, VideoSize
from trainers.policies.load import policy_of
from trainers.prompts import load_prompt_set

SIZE = VideoSize(16, 16, 5)
CONFIG = RolloutConfig(steps=4, guidance=1, window={"kind": "random", "size": 2, "last": 3})
SCHEDULE = flow_schedule(4, 3.0)


@pytest.fixture(scope="module", params=["vace", "phantom"])
def policy(request, small_models, small_phantom):
    return policy_of(PolicyConfig(**(small_models["policy"] if request.param == "vace" else small_phantom)))


@pytest.fixture(scope="module")
def conditions(policy, small_models):
    return policy.encode(load_prompt_set(small_models["prompts"])[0], SIZE)


def rolled(policy, conditions, windows, seeds, **options):
    """Rollouts whose trained steps are `windows`: one for all, or one for each seed."""
    windows = [windows] * len(seeds) if isinstance(windows[0], int) else windows
    return roll_out(policy, [conditions] * len(seeds), SIZE, CONFIG, SCHEDULE, windows, seeds, **options)


def test_defect_25_every_state_is_kept_once_and_without_a_graph(policy, conditions):
    batch, final = rolled(policy, conditions, range(1, 3), [5, 6])
    shape = policy.latent_shape(SIZE, 2)
    assert batch.states.shape == (2, 3, *shape) and batch.log_probs.shape == (2, 2)
    assert batch.means is None
    assert not any(t.requires_grad for t in (batch.states, batch.log_probs, final))
    assert batch.conditions[0] is batch.conditions[1] is conditions


def test_the_window_ends_where_the_ode_continues(policy, conditions):
    batch, final = rolled(policy, conditions, range(2, 4), [5])
    assert torch.equal(batch.states[:, -1], final)
    batch, final = rolled(policy, conditions, range(1, 3), [5])
    assert not torch.equal(batch.states[:, -1], final)


def test_means_for_guard_are_those_of_the_sampled_steps(policy, conditions):
    batch, _ = rolled(policy, conditions, range(1, 3), [5], keep_means=True)
    assert batch.means.shape == batch.states[:, 1:].shape
    assert (batch.means - batch.states[:, 1:]).abs().max() > 1e-3


def test_a_scattered_window_keeps_what_enters_and_leaves_each_of_its_steps(policy, conditions):
    """Neighbours and scattered steps of one rollout: the steps that both train hold the same states."""
    batch, _ = rolled(policy, conditions, (0, 2), [5])
    assert batch.states.shape[1] == 4
    first, again = (rolled(policy, conditions, window, [5])[0] for window in ((0,), (0, 1)))
    for found, expected in zip(batch.transition(0), first.transition(0), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(again.transition(0)[1], again.transition(1)[0])
    assert not torch.equal(batch.transition(0)[1], batch.transition(1)[0])
    assert torch.isfinite(batch.states).all() and torch.isfinite(batch.log_probs).all()


def test_rollouts_of_one_batch_may_have_windows_of_their_own(policy, conditions):
    together, final = rolled(policy, conditions, [(0, 1), (2, 3), (1, 2)], [5, 6, 7], keep_means=True)
    for place, (window, seed) in enumerate(zip([(0, 1), (2, 3), (1, 2)], [5, 6, 7], strict=True)):
        alone, own = rolled(policy, conditions, window, [seed], keep_means=True)
        torch.testing.assert_close(final[place : place + 1], own, atol=1e-4, rtol=0)
        torch.testing.assert_close(together.states[place : place + 1], alone.states, atol=1e-4, rtol=0)
        torch.testing.assert_close(together.log_probs[place : place + 1], alone.log_probs, atol=1e-4, rtol=0)
        assert together.steps[place].tolist() == list(window)


def test_defect_19_a_rollout_is_made_again_from_its_seed_alone(policy, conditions):
    _, together = rolled(policy, conditions, range(1, 3), [5, 6, 7])
    torch.manual_seed(1)
    _, again = rolled(policy, conditions, range(1, 3), [6])
    torch.testing.assert_close(together[1:2], again, atol=1e-4, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_rollouts_ask_before_every_step_whether_to_continue(policy, conditions):
    calls = []
    rolled(policy, conditions, range(1, 3), [5], check=lambda: calls.append(None))
    assert len(calls) == 4


def test_nothing_to_sample_gives_no_videos(policy):
    assert len(sample_videos(policy, [], SIZE, 2, 3.0, Guidance(), [])) == 0


@given(st.lists(st.integers(1, 3), max_size=20), st.integers(1, 6))
def test_micro_batches_hold_everything_once_and_nothing_of_another_shape(references, size):
    conditions = [SimpleNamespace(references=count) for count in references]
    found = list(micro_batches(dict(enumerate(conditions)), size))
    assert sorted(i for chunk in found for i in chunk) == list(range(len(conditions)))
    assert all(len({references[i] for i in chunk}) == 1 and len(chunk) <= size for chunk in found)
