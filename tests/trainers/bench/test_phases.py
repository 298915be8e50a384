"""Every phase of TinyWorld's policies runs on what training runs, and is counted."""

from __future__ import annotations

import pytest
import torch

from trainers.bench.iteration import PHASES
from trainers.bench.measure import Clock, measure
from trainers.bench.models import make_policy, make_reward
from trainers.bench.phases import SAMPLED_STEPS, Workload
from trainers.config import make_config

CPU = torch.device("cpu")
CHANGES = {
    "rollout": {"micro_batch": 1},
    "optim": {"micro_batch": 2},
    "reward": {"micro_batch": 1},
    "video": {"height": 32, "width": 32, "frames": 5},
    "lora": {"rank": 2, "alpha": 2},
}


@pytest.fixture(scope="module", params=["tiny", "tiny-phantom"])
def workload(request) -> Workload:
    config = make_config(request.param, CHANGES)
    kind = "phantom" if "phantom" in request.param else "vace"
    return Workload(make_policy("tiny", kind, config, CPU), make_reward("tiny", config, CPU), config)


@pytest.mark.parametrize("name", PHASES)
def test_a_phase_is_timed_and_counted(workload, name):
    (phase,) = workload.phases([name])
    row = measure(phase, CPU, repeats=1)
    assert row.name == PHASES[name] and not row.error
    assert row.median > 0 and row.peak_bytes > 0
    assert (row.flops > 0) == (name not in ("optimiser", "checkpoint"))


def test_a_sampled_step_is_that_of_the_rollout_and_no_more(workload, monkeypatch):
    steps = []
    velocity = workload.policy.velocity
    monkeypatch.setattr(workload.policy, "velocity", lambda *a, **k: steps.append(1) or velocity(*a, **k))
    (phase,) = workload.phases(["ode"])
    phase.run(Clock(CPU))
    assert len(steps) == phase.units == SAMPLED_STEPS


def test_a_trained_step_has_the_gradient_of_a_policy_that_sampled(workload):
    (phase,) = workload.phases(["train"])
    workload.update.optimiser.zero_grad()
    phase.run(Clock(CPU))
    norms = [p.grad.norm() for name, p in workload.update.parameters.items() if ".lora_B." in name]
    assert torch.stack(norms).isfinite().all() and sum(norms) > 0


def test_a_whole_iteration_samples_scores_and_updates(workload, monkeypatch):
    rollout = {"group_size": 2, "groups_per_update": 2, "updates_per_iteration": 1, "steps": 3, "micro_batch": 2}
    rollout["window"] = {"kind": "random", "size": 1, "last": 2}
    config = make_config(workload.config.preset, CHANGES | {"rollout": rollout})
    made = Workload(workload.policy, workload.reward, config)
    before = {name: p.detach().clone() for name, p in made.update.parameters.items()}
    row = measure(made.whole_iteration(), CPU, repeats=0)
    assert (row.name, row.units, len(row.seconds), row.flops) == ("whole iteration", 4, 1, 0.0) and not row.error
    assert any((p != before[name]).any() for name, p in made.update.parameters.items())


def test_the_shape_of_attention_is_that_of_a_sampled_step(workload):
    shapes = []
    attention = workload.policy.transformer.blocks[0].attn1
    handle = attention.to_q.register_forward_hook(lambda _, inputs, out: shapes.append(tuple(inputs[0].shape)))
    (phase,) = workload.phases(["ode"])
    phase.run(Clock(CPU))
    handle.remove()
    sequences, tokens, heads, channels = workload.attention_shape
    assert set(shapes) == {(sequences, tokens, heads * channels)}
