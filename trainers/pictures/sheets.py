"""A clip as one picture of all its frames: a page can play several in step, and show any frame, without a decoder."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from .clips import read_clip

COLUMNS = 8
MOST_FRAMES = {96: 16, 192: 33, 384: 81}
"""How many frames a sheet has at most, by the width of a frame in pixels."""
QUALITY = 88


@dataclass(frozen=True)
class FrameSheet:
    """A JPEG of frames in rows of `columns`, each `width` x `height` pixels; `fps` frames are one second."""

    jpeg: bytes
    frames: int
    columns: int
    width: int
    height: int
    fps: float


def frame_sheet(path: Path, width: int) -> FrameSheet:
    """The clip's frames at one of the widths of MOST_FRAMES, or at their own where it is smaller; cached.

    Raises UserError for a clip that cannot be read.
    """
    stat = path.stat()
    return _sheet(path, width, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=48)
def _sheet(path: Path, width: int, _changed: int, _size: int) -> FrameSheet:
    clip, fps = read_clip(path)
    count = min(len(clip), MOST_FRAMES[width])
    chosen = clip[np.linspace(0, len(clip) - 1, count).round().astype(int)]
    height, own = clip.shape[1:3]
    width = min(width, own)
    height = max(1, round(height * width / own))
    columns = min(COLUMNS, count)
    sheet = Image.new("RGB", (columns * width, math.ceil(count / columns) * height))
    for index, frame in enumerate(chosen):
        picture = Image.fromarray(frame)
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(picture, (index % columns * width, index // columns * height))
    out = io.BytesIO()
    sheet.save(out, "JPEG", quality=QUALITY)
    return FrameSheet(out.getvalue(), count, columns, width, height, (fps or 10.0) * count / len(clip))
