"""The blocks of a Wan transformer."""

from __future__ import annotations

from torch import nn


def running_blocks(transformer: nn.Module) -> list[nn.Module]:
    """All blocks in the order in which they compute: VACE's control blocks come first."""
    return [*getattr(transformer, "vace_blocks", ()), *transformer.blocks]
