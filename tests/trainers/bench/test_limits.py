"""The trial of memory plans: how its numbers are put together; runs by each plan are in tests/trainers/grpo."""

from __future__ import annotations

import pytest
import torch

from trainers.bench.limits import Outcome, _phases, lora_difference, rows
from trainers.cli import main
from trainers.errors import UserError
from trainers.lora.adapter import LoRA
from trainers.lora.writing import write_native
from trainers.memory.plan import OVERHEAD, MemoryPlan, Phase

NAME = "blocks.0.attn1.to_q"


@pytest.fixture
def lora_file(tmp_path):
    def write(up: torch.Tensor, name: str = NAME):
        path = tmp_path / f"{name}-{up.sum().item()}.safetensors"
        write_native(LoRA({name: (torch.ones(2, 8), up)}, {name: 2.0}), path)
        return path

    return write


def test_the_difference_of_loras_is_relative_to_the_first(lora_file):
    first = lora_file(torch.full((8, 2), 2.0))
    assert lora_difference(first, first) == 0.0
    assert lora_difference(lora_file(torch.full((8, 2), 3.0)), first) == pytest.approx(0.5)


def test_loras_of_other_layers_are_not_compared(lora_file):
    with pytest.raises(UserError, match="different layers"):
        lora_difference(lora_file(torch.ones(8, 2)), lora_file(torch.ones(8, 2), "blocks.1.attn1.to_q"))


def test_phases_that_are_one_where_all_models_stay_are_compared_by_the_largest():
    names = ("sample", "decode", "score", "evaluation: sample", "evaluation: decode", "update")
    needs = tuple(Phase(name, {}, size) for size, name in enumerate(names))
    moved = dict(_phases(MemoryPlan("phases", needs)))
    together = dict(_phases(MemoryPlan("resident", needs)))
    assert moved == {phase.name: phase.total - OVERHEAD for phase in needs}
    assert together == {
        "rollouts": moved["score"],
        "evaluation: videos": moved["evaluation: decode"],
        "update": moved["update"],
    }


def test_a_run_is_a_row_for_each_phase():
    found = Outcome("16 GiB", "phases", {"sample": (8.4, 7.9), "decode": (3.0, None)}, (10.0, 2.0), 0.001)
    first, second = rows(found)
    assert first["run"] == "16 GiB" and first["used GiB"] == "7.90" and first["LoRA difference"] == "1.00e-03"
    assert second == {"run": "", "phase": "decode", "planned GiB": "3.00", "used GiB": ""}


def test_models_of_real_size_need_a_gpu(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(["memory", "--size", "1.3b", "--folder", str(tmp_path)]) == 2
    assert "need a GPU" in capsys.readouterr().err
