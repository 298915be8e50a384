"""A run as pictures, for nodes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..pictures.clips import read_clip
from .folder import RunFolder

CLIPS_SHOWN = 4
EMPTY = 32
"""Side and grey level of the picture that stands for one that is not there yet."""


def curve(run: RunFolder) -> np.ndarray:
    """The curve uint8 [H, W, 3]; a dark square until something is measured."""
    rows = run.read_metrics()
    if not rows:
        return np.full((EMPTY, EMPTY, 3), EMPTY, np.uint8)
    from ..pictures.curves import plot_curve

    with tempfile.TemporaryDirectory() as folder:
        return read_clip(plot_curve(rows, Path(folder) / "curve.png", run.id))[0][0]


def newest_clips(run: RunFolder) -> np.ndarray:
    """The newest clips of the first held-out items side by side: uint8 [F, H, W, 3]; one dark frame until there are
    any."""
    for files in run.clips():
        try:
            clips = [read_clip(path)[0] for path in files[:CLIPS_SHOWN]]
        except UserError:
            continue  # being written just now
        frames = min(map(len, clips))
        return np.concatenate([clip[:frames] for clip in clips], axis=2)
    return np.full((1, EMPTY, EMPTY, 3), EMPTY, np.uint8)
