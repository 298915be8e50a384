"""The networks against dlib, and as functions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from trainers.faces.networks import embed_chips
from trainers.faces.weights import load_networks

from .conftest import NAMES, PICTURES


@pytest.fixture(scope="module")
def chips() -> torch.Tensor:
    pictures = [np.array(Image.open(PICTURES / f"{name}_chip.png").convert("RGB")) for name in NAMES]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()


@pytest.fixture(scope="module")
def numbers(chips) -> torch.Tensor:
    return embed_chips(load_networks(torch.device("cpu")).embedder, chips)


def test_the_embedder_agrees_with_dlib(numbers):
    """The weights have 8 bits; faces of different people are 0.6 and more apart."""
    expected = json.loads((PICTURES / "dlib.json").read_text(encoding="utf-8"))
    distances = (numbers - torch.tensor([expected[name] for name in NAMES])).norm(dim=1)
    assert distances.max() < 0.06


def test_an_embedding_does_not_depend_on_its_batch(chips, numbers):
    alone = embed_chips(load_networks(torch.device("cpu")).embedder, chips[1:2])
    torch.testing.assert_close(alone[0], numbers[1], atol=1e-4, rtol=0)


def test_the_embedder_is_differentiable(chips):
    chip = chips[:1].clone().requires_grad_()
    embed_chips(load_networks(torch.device("cpu")).embedder, chip).sum().backward()
    assert chip.grad.abs().max() > 0
