"""Weights that were copied from a mapped file do not stay in memory a second time."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Linear

from trainers.memory.host import HostWeights
from trainers.memory.pages import MAPS, MappedFiles

pytestmark = pytest.mark.skipif(not MAPS.is_file(), reason="only Linux tells what is mapped from files")
VALUES = torch.arange(2**18, dtype=torch.float32).reshape(512, 512)


@pytest.fixture
def mapped(tmp_path) -> Tensor:
    save_file({"weight": VALUES}, tmp_path / "weights.safetensors")
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        tensor = file.get_tensor("weight")
    assert torch.equal(tensor, VALUES)  # all of it has been read
    return tensor


def resident(tensor: Tensor) -> int:
    """KiB in memory of the mapping that the tensor lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, _, end = first.partition("-")
            inside = int(start, 16) <= tensor.data_ptr() < int(end, 16)
        elif inside and first == "Rss:":
            return int(line.split()[1])
    raise AssertionError("the tensor is in no mapping")


def test_copied_weights_of_a_file_leave_memory(mapped):
    before = resident(mapped)
    linear = Linear(512, 512, bias=False)
    linear.requires_grad_(False)
    linear.weight.data = mapped
    HostWeights(linear, torch.device("cpu"))
    assert before >= VALUES.nbytes // 1024 and resident(mapped) <= 2 * mmap.PAGESIZE // 1024
    assert torch.equal(linear.weight, VALUES)


def test_they_can_still_be_read(mapped):
    MappedFiles().give_back(mapped)
    assert torch.equal(mapped, VALUES)


def test_weights_with_memory_of_their_own_keep_it(mapped):
    own = mapped.clone()
    MappedFiles().give_back(own)
    assert torch.equal(own, VALUES)


def test_part_of_a_tensor_in_a_file_takes_nothing_of_the_rest(mapped):
    linear = Linear(512, 3, bias=False)
    linear.requires_grad_(False)
    linear.weight.data = mapped[5:8]
    HostWeights(linear, torch.device("cpu"))
    assert torch.equal(linear.weight, VALUES[5:8]) and torch.equal(mapped, VALUES)
