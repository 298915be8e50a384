"""A tiny base model of the real class, and pairs that are easy to learn."""

from __future__ import annotations

import pytest
import torch

from trainers.preference.pairs import Pair


@pytest.fixture
def bright_pairs() -> list[Pair]:
    """The brighter clip is the better one; equally bright ones tie."""
    generator = torch.Generator().manual_seed(0)

    def clip(level: int) -> torch.Tensor:
        noise = torch.randint(-20, 21, (4, 28, 28, 3), generator=generator)
        return (level + noise).clamp(0, 255).to(torch.uint8)

    def pair(index: int) -> Pair:
        label = (1, -1, 0)[index % 3]
        levels = {1: (200, 60), -1: (60, 200), 0: (130, 130)}[label]
        return Pair([clip(128)[0]], clip(levels[0]), clip(levels[1]), label, kind="bright" if label else "equal")

    return [pair(i) for i in range(24)]
