"""Faces as numbers whose distance shows whether they are of one person."""

from __future__ import annotations

import torch
from torch import Tensor

from .detect import Faces
from .networks import NUMBERS, embed_chips
from .weights import load_networks

BATCH = 32


@torch.no_grad()
def embed(faces: Faces) -> Tensor:
    """128 numbers of each face, float32 [n, 128] on the CPU; compare two by their Euclidean distance."""
    weights = load_networks(faces.chips.device).embedder
    parts = [embed_chips(weights, chips.float()).cpu() for chips in faces.chips.split(BATCH)] if len(faces) else []
    return torch.cat(parts) if parts else torch.zeros(0, NUMBERS)
