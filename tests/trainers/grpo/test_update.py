"""The policy update: its learning rate over a run."""

from __future__ import annotations

import pytest

from trainers.config import PolicyConfig, make_config
from trainers.diffusion.schedule import flow_schedule
from trainers.grpo.ranks import Ranks
from trainers.grpo.update import PolicyUpdate
from trainers.lora.inject import add_lora
from trainers.policies.load import policy_of


@pytest.fixture(scope="module")
def policy(small_models):
    policy = policy_of(PolicyConfig(**small_models["policy"]))
    add_lora(policy.transformer, 2, 2.0, 0)
    return policy


@pytest.mark.parametrize("schedule, rates", [("constant", [2e-3, 2e-3, 2e-3]), ("linear", [2e-3, 1.5e-3, 0.0])])
def test_the_learning_rate_follows_its_schedule(policy, schedule, rates):
    config = make_config("tiny", {"optim": {"learning_rate": 2e-3, "schedule": schedule}})
    update = PolicyUpdate(policy, config, flow_schedule(8, 3.0), Ranks())
    for done, rate in zip([0.0, 0.25, 1.0], rates, strict=True):
        update.set_progress(done)
        assert [group["lr"] for group in update.optimiser.param_groups] == pytest.approx([rate])
