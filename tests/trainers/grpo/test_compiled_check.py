"""A compiler that gives wrong gradients is noticed before a run trains by them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from trainers.bench.measure import Clock
from trainers.bench.models import make_policy
from trainers.bench.phases import Workload
from trainers.config import make_config
from trainers.errors import UserError
from trainers.grpo.compiled_check import CompiledCheck

CPU = torch.device("cpu")
CHANGES = {
    "optim": {"micro_batch": 2},
    "video": {"height": 32, "width": 32, "frames": 5},
    "lora": {"rank": 2, "alpha": 2},
}


def right(graph, inputs):
    return graph


def wrong(graph, inputs):
    """Kernels with the right numbers, whose gradients are twice as large."""

    def run(*given):
        return tuple(2 * o - o.detach() if isinstance(o, Tensor) and o.requires_grad else o for o in graph(*given))

    return run


@pytest.fixture
def trained():
    """A function: the gradient of a trained step, and what was logged. With a `backend` it compiles the last block,
    through which all gradients go, and the step is checked."""
    torch._dynamo.reset()

    def step(backend=None, choice: str = "auto") -> tuple[Tensor, list[str]]:
        config, lines = make_config("tiny", CHANGES), []
        workload = Workload(make_policy("tiny", "vace", config, CPU), None, config)
        transformer, update = workload.policy.transformer, workload.update
        if backend is not None:
            transformer.blocks[-1].compile(backend=backend)
            update.compiled_check = CompiledCheck(transformer, choice, lines.append)
        (phase,) = workload.phases(["train"])
        phase.run(Clock(CPU))
        return torch.cat([parameter.grad.flatten() for parameter in update.parameters.values()]), lines

    yield step
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


def test_right_gradients_pass_and_the_step_is_as_without_the_check(trained):
    gradient, lines = trained(right)
    assert len(lines) == 1 and lines[0].endswith("rounding") and "differ" in lines[0]
    assert torch.allclose(gradient, trained()[0], rtol=1e-4, atol=1e-7)


def test_with_wrong_ones_the_blocks_compute_uncompiled_from_there_on(trained):
    gradient, lines = trained(wrong)
    assert "compute uncompiled from here on" in lines[0]
    assert torch.allclose(gradient, trained()[0], rtol=1e-4, atol=1e-7)


def test_where_compiling_was_asked_for_wrong_ones_are_an_error(trained):
    with pytest.raises(UserError, match="set policy.compile to `never`, or update PyTorch"):
        trained(wrong, "always")


def test_where_memory_is_short_for_uncompiled_blocks_the_run_trains_unchecked():
    def backward():
        raise torch.OutOfMemoryError

    lines = []
    transformer = SimpleNamespace(_gradient_checkpointing_func=SimpleNamespace(share=0.0))
    assert CompiledCheck(transformer, "auto", lines.append)([], backward)
    assert "memory ran out" in lines[0] and transformer._gradient_checkpointing_func.share == 0.0
