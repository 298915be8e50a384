"""What is on the device in which phase, and how stages follow each other."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn
from torch.nn import Linear

from trainers.memory.placement import Placement
from trainers.memory.plan import MemoryPlan

CPU = torch.device("cpu")


def placed(plan: str) -> tuple[Placement, dict[str, nn.Module], dict[str, int]]:
    """Two models under a plan, and where their weights lie off the device."""
    models = {name: Linear(2, 2).requires_grad_(False) for name in ("VAE", "reward")}
    placement = Placement(MemoryPlan(plan), CPU)
    for name, model in models.items():
        placement.add(name, model)
    return placement, models, {name: model.weight.data_ptr() for name, model in models.items()}


def loaded(models: dict[str, nn.Module], homes: dict[str, int]) -> set[str]:
    return {name for name, model in models.items() if model.weight.data_ptr() != homes[name]}


def test_a_phase_loads_what_it_needs_and_unloads_the_rest():
    placement, models, homes = placed("phases")
    with placement.phase("decode", "VAE"):
        assert loaded(models, homes) == {"VAE"}
    with placement.phase("score", "reward"):
        assert loaded(models, homes) == {"reward"}
    with placement.phase("encode texts"):
        assert loaded(models, homes) == set()


def stages(events: list[str]):
    def make(results):
        for number in range(2):
            events.append(f"make {number}")
            yield number

    def use(results):
        for number in results:
            events.append(f"use {number}")
            yield -number

    return ("make", "VAE", make), ("use", "reward", use)


@pytest.mark.parametrize(
    "plan, order",
    [
        ("phases", ["make 0", "make 1", "use 0", "use 1"]),
        ("resident", ["make 0", "use 0", "make 1", "use 1"]),
    ],
)
def test_stages_are_phases_only_where_models_move(plan, order):
    events: list[str] = []
    assert placed(plan)[0].pipeline("both", *stages(events)) == [0, -1]
    assert events == order


def test_each_stage_has_its_model():
    placement, models, homes = placed("phases")
    seen = []

    def look(results):
        seen.append(loaded(models, homes))
        yield from results

    placement.pipeline("both", ("one", "VAE", look), ("two", "reward", look))
    assert seen == [{"VAE"}, {"reward"}]


def test_without_a_plan_nothing_moves():
    model = Linear(2, 2)
    place = model.weight.data_ptr()
    placement = Placement()
    placement.add("VAE", model)
    with placement.phase("decode", "VAE"):
        assert model.weight.data_ptr() == place


def test_a_stage_with_a_device_to_itself_takes_the_results_in_order():
    for plan in ("phases", "resident"):
        placement, _, _ = placed(plan)
        placement.add_own("judge", CPU)
        make, _ = stages([])
        double = ("double", "VAE", lambda results: (2 * number for number in results))
        use = ("use", "judge", lambda results: [(number, threading.current_thread().name) for number in results])
        assert placement.pipeline("all", make, double, use) == [(0, "beside on cpu_0"), (2, "beside on cpu_0")]
