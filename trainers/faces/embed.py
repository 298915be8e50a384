"""Faces as numbers whose distance shows whether they are of one person, and whether they are clear enough for it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .calibration import JUDGEABLE, SHARP
from .detect import Faces
from .networks import NUMBERS, embed_chips
from .users import OnnxEmbedder
from .weights import load_networks

BATCH = 32


@torch.no_grad()
def embed(faces: Faces, embedder: OnnxEmbedder | None = None) -> Tensor:
    """Numbers of each face, float32 [n, 128] on the CPU; compare two by their Euclidean distance.

    `embedder`: the user's own in place of the built-in one, if the faces were detected for it; it has as many numbers
    as its file says.
    """
    if embedder is not None:
        return embedder(faces.crops)
    weights = load_networks(faces.chips.device).embedder
    parts = [embed_chips(weights, chips.float()).cpu() for chips in faces.chips.split(BATCH)] if len(faces) else []
    return torch.cat(parts) if parts else torch.zeros(0, NUMBERS)


def detail(faces: Faces) -> Tensor:
    """[n] the part of each upright face's contrast that a picture of 24x24 pixels of it loses, on the CPU.

    A sharp face has about 0.22; blur and a small size lower it.
    """
    grey = faces.chips.float().mean(1, keepdim=True)[:, :, 22:135, 18:132].cpu()
    if not len(grey):
        return torch.zeros(0)
    coarse = F.interpolate(
        F.interpolate(grey, (24, 24), mode="bilinear", antialias=True), grey.shape[-2:], mode="bicubic"
    )
    lost, contrast = ((grey - other).flatten(1).norm(dim=1) for other in (coarse, grey.mean((2, 3), keepdim=True)))
    return lost / contrast.clamp(min=1e-6)


def can_judge(faces: Faces) -> Tensor:
    """bool [n]: faces that are large and sharp enough to recognise."""
    return (faces.size >= JUDGEABLE) & (detail(faces) >= SHARP)
