"""The profile of a step on the CPU."""

from __future__ import annotations

import torch

from trainers.bench.measure import Phase
from trainers.bench.profile import profile_phase


def run(clock) -> None:
    a = torch.ones(8, 8)
    clock.start()
    (a @ a).sum().item()
    clock.stop()


def test_it_lists_the_operations_and_the_numbers_that_are_waited_for():
    text = profile_phase(Phase("a product", "video", 1, torch.float32, run), torch.device("cpu"))
    table, _, waiting = text.partition("calls that wait:")
    assert text.startswith("a product") and "aten::mm" in table
    assert "1 x aten::_local_scalar_dense" in waiting
