"""How much moves in a video, to notice a policy that stops moving: identity is easiest to keep in a still picture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

CELLS = 24  # along the shorter side; a cell's mean keeps what moves and little of the sampler's noise


def motion_energy(video: Tensor) -> float:
    """Root mean square change of a cell's colour from one frame to the next, 0 to 1, of a video uint8 [F, H, W, 3].

    The picture is reduced to CELLS cells on its shorter side, and the mean colour of each frame is taken off: noise
    counts little and a flickering light not at all. 0 for a single frame.
    """
    if len(video) < 2:
        return 0.0
    planes = video.permute(0, 3, 1, 2).to(torch.float32) / 255
    height, width = planes.shape[-2:]
    scale = min(1.0, CELLS / min(height, width))
    cells = F.adaptive_avg_pool2d(planes, (max(1, round(height * scale)), max(1, round(width * scale))))
    cells = cells - cells.mean((2, 3), keepdim=True)
    return cells.diff(dim=0).square().mean(dtype=torch.float64).sqrt().item()


def motion_left(videos: Sequence[Tensor], base: Sequence[float], enough: float) -> list[float]:
    """Of each video, 0 to 1: its `motion_energy` as a part of `enough` times that of the base policy's video.

    `base`: the energy of the base policy's video of the same item. 1 where even that stands still.
    """
    energies = map(motion_energy, videos)
    return [min(1.0, own / (enough * other)) if other > 0 else 1.0 for own, other in zip(energies, base, strict=True)]
