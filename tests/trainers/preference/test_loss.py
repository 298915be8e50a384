"""Bradley-Terry with ties."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from trainers.preference.loss import A_BETTER, B_BETTER, INVALID, TIE, btt_loss
from trainers.rewards.identity import preference_probabilities

SCORES = st.floats(-20, 20, width=32)


def test_the_references_losses_and_gradients_are_reproduced(repository: Path) -> None:
    case = load_file(repository / "tests" / "golden" / "identity_reward" / "btt.safetensors")
    a, b = case["reward_a"].requires_grad_(), case["reward_b"].requires_grad_()
    mean, per_pair = btt_loss(a, b, case["labels"])
    mean.backward()
    torch.testing.assert_close(per_pair, case["loss_per_pair"], rtol=0, atol=2e-6)
    torch.testing.assert_close(mean, case["loss_mean"], rtol=0, atol=1e-6)
    torch.testing.assert_close(a.grad, case["grad_reward_a"], rtol=0, atol=1e-6)
    torch.testing.assert_close(b.grad, case["grad_reward_b"], rtol=0, atol=1e-6)


@given(SCORES, SCORES, st.floats(1.1, 20))
def test_the_loss_is_minus_the_log_of_the_probability(a: float, b: float, theta: float) -> None:
    probabilities = torch.stack(preference_probabilities(a, b, theta))
    rewards = torch.tensor([a]), torch.tensor([b])
    losses = torch.cat([btt_loss(*rewards, torch.tensor([label]), theta)[1] for label in (A_BETTER, TIE, B_BETTER)])
    torch.testing.assert_close(losses.double(), -probabilities.log(), rtol=1e-4, atol=1e-4)


@given(SCORES, SCORES)
def test_exchanging_the_clips_exchanges_the_labels(a: float, b: float) -> None:
    a, b = torch.tensor([a]), torch.tensor([b])
    for label in (A_BETTER, TIE, B_BETTER):
        assert torch.equal(btt_loss(a, b, torch.tensor([label]))[0], btt_loss(b, a, torch.tensor([-label]))[0])


def test_extreme_scores_stay_finite() -> None:
    a = torch.tensor([1e4, -1e4], requires_grad=True)
    loss, _ = btt_loss(a, torch.zeros(2), torch.tensor([B_BETTER, TIE]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(a.grad).all()


def test_invalid_pairs_cost_nothing_but_are_counted() -> None:
    a, b = torch.tensor([1.0, 5.0], requires_grad=True), torch.zeros(2)
    mean, per_pair = btt_loss(a, b, torch.tensor([A_BETTER, INVALID]))
    mean.backward()
    assert per_pair[1] == 0 and a.grad[1] == 0
    assert mean == per_pair[0] / 2


@pytest.mark.parametrize("label", [2, -2, 21])
def test_an_unknown_label_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match="unknown label"):
        btt_loss(torch.zeros(1), torch.zeros(1), torch.tensor([label]))


@pytest.mark.parametrize("theta", [1.0, 0.5, float("nan"), float("inf")])
def test_a_theta_without_ties_is_refused(theta: float) -> None:
    with pytest.raises(ValueError, match="theta"):
        btt_loss(torch.zeros(1), torch.zeros(1), torch.tensor([TIE]), theta)
