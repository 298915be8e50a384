"""The claims of `proof`, on given outcomes."""

from __future__ import annotations

import pytest

from trainers.commands.proof import Outcome, outcome, proof_config, verdicts
from trainers.errors import UserError
from trainers.runs.folder import RunFolder


def made(
    name: str = "tuned",
    seed: int = 0,
    win: float = 0.9,
    before: float = 0.5,
    after: float = 0.65,
    alignment: float = 0.9,
) -> Outcome:
    return Outcome(name, seed, win, win - 0.1, 1.0, before, after, 0.9, alignment, 60.0)


FLAT = made("control", win=0.5, after=0.5)


def held(tuned: list[Outcome], control: list[Outcome]) -> list[bool]:
    return [ok for _, ok in verdicts(tuned, control)]


def test_all_claims_hold_where_every_seed_gains():
    assert held([made(), made(seed=1, win=0.76)], [FLAT]) == [True] * 4


@pytest.mark.parametrize(
    "weak, failing",
    [
        ({"win": 0.74}, 0),
        ({"after": 0.594}, 1),
        ({"alignment": 0.85}, 2),
    ],
)
def test_one_weak_seed_fails_its_claim_alone(weak, failing):
    assert [i for i, ok in enumerate(held([made(), made(seed=1, **weak)], [FLAT])) if not ok] == [failing]


@pytest.mark.parametrize("gained", [{"win": 0.7, "after": 0.5}, {"win": 0.5, "after": 0.55}])
def test_controls_that_gain_on_the_whole_fail(gained):
    assert held([made()], [made("control", **gained)])[3] is False


def test_one_control_may_drift_up_if_others_drift_down():
    assert held([made()], [made("control", win=0.65, after=0.53), made("control", seed=1, win=0.3, after=0.45)])[3]


def test_nothing_is_claimed_of_controls_that_were_not_run():
    assert held([made()], [])[3] is False


@pytest.mark.parametrize("policy, source", [("vace", "tinyworld"), ("phantom", "tinyworld-phantom")])
def test_the_proof_is_about_the_policy_asked_for(policy, source):
    assert proof_config(0, False, policy=policy).policy.source == source


def test_a_control_is_the_same_run_with_shuffled_rewards():
    tuned, control = proof_config(3, False), proof_config(3, True)
    assert control.reward.shuffle and not tuned.reward.shuffle
    assert tuned.model_copy(update={"reward": control.reward}) == control


def test_an_unfinished_run_is_no_outcome(tmp_path):
    with pytest.raises(UserError, match="did not finish"):
        outcome(RunFolder.create(tmp_path, proof_config(0, False)), "tuned")
