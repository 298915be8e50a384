"""What of a model is on a card of a given size while it works."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch.nn import Linear, ModuleList


@pytest.fixture
def fit(pack, monkeypatch):
    """`fit` on a card with so many bytes of room, for a model of 8 blocks of 4096 bytes each and 4096 beside."""
    module = import_module("identity_grpo.nodes.fit")
    model = ModuleList(Linear(32, 32, bias=False) for _ in range(9))

    def on(room: float, working: float, most: int):
        monkeypatch.setattr(module, "room", lambda: room)
        return module.fit(model, list(model)[:8], working, most)

    return on


@pytest.mark.parametrize(
    "room, swapped, at_once",
    [
        (float("inf"), 0, 3),
        (9 * 4096 + 3 * 1000, 0, 3),
        (9 * 4096 + 2999, 0, 2),
        (9 * 4096 + 1000, 0, 1),
        (9 * 4096 + 999, 8, 3),  # with swapped blocks there is room for more work
        (3 * 4096 + 2000, 8, 2),
        (100, 8, 1),  # too small for anything: it may run out of memory, and says so then
    ],
)
def test_blocks_are_swapped_where_the_weights_have_no_room_beside_the_work(fit, room, swapped, at_once):
    found = fit(room, 1000, 3)
    assert (len(found.swapped), found.at_once) == (swapped, at_once)


def test_room_leaves_out_what_comfyui_keeps_free(pack, monkeypatch):
    module = import_module("identity_grpo.nodes.fit")
    assert module.room() == float("inf")  # no GPU
    monkeypatch.setattr(module.management, "get_torch_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(module.management, "get_total_memory", lambda device: 100)
    monkeypatch.setattr(module.management, "minimum_inference_memory", lambda: 30)
    assert module.room() == 70
