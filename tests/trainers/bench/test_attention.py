"""Attention alone, by every backend that computes here."""

from __future__ import annotations

import pytest
import torch

from trainers.bench import attention
from trainers.bench.attention import attention_errors, attention_phases
from trainers.bench.measure import measure

CPU = torch.device("cpu")
SHAPE = 2, 96, 2, 32


def test_pytorchs_own_choice_is_measured_with_and_without_gradient():
    rows = {phase.name: measure(phase, CPU, 1) for phase in attention_phases(SHAPE, torch.float32, CPU)}
    forward, both = rows["attention, native"], rows["attention, native, gradient"]
    assert not forward.error and forward.median > 0
    assert (forward.flops, both.flops) == (4 * 96**2 * 64, 3.5 * forward.flops)


def test_a_backend_that_does_not_compute_here_is_left_out():
    names = {phase.name for phase in attention_phases(SHAPE, torch.float32, CPU)}
    assert not any("cudnn" in name for name in names) and "attention, sage, gradient" not in names


@pytest.mark.parametrize(("dtype", "least", "most"), [(torch.float32, 1e-9, 1e-5), (torch.bfloat16, 1e-4, 1e-2)])
def test_outputs_are_compared_with_those_in_float64(dtype, least, most):
    assert least < attention_errors(SHAPE, dtype, CPU)["native"] < most


def test_a_backend_that_is_wrong_has_a_large_error(monkeypatch):
    attend = attention._attend
    monkeypatch.setattr(attention, "_attend", lambda name, q, k, v: attend(name, q, k, v) * 1.1)
    assert attention_errors(SHAPE, torch.float32, CPU)["native"] == pytest.approx(0.1, abs=1e-3)
