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

MOST_FRAMES = {96: 16, 192: 33, 384: 81}
"""How many frames a sheet has at most, by the width of a frame in pixels."""
MOST_OF_ALL = 241
TALLEST, WIDEST = 480, 848  # pixels of a frame, where no width is asked for
LARGEST = 8192  # pixels of a side: what every browser decodes
LOSSLESS = 160  # such small frames are kept without loss, where no width is asked for


@dataclass(frozen=True)
class FrameSheet:
    """An encoded picture of `frames` frames of `width` x `height` pixels in rows of `columns`; `fps` are one second."""

    data: bytes
    content_type: str
    frames: int
    columns: int
    width: int
    height: int
    fps: float


def frame_sheet(path: Path, width: int | None = None, fps: float | None = None) -> FrameSheet:
    """The clip's frames at one of the widths of MOST_FRAMES, or, without one, as large as they are; cached.

    `fps`: where the file states none, or another is wanted. Long clips lose frames evenly. Raises UserError for a clip
    that cannot be read.
    """
    stat = path.stat()
    return _sheet(path, width, fps, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=48)
def _sheet(path: Path, width: int | None, fps: float | None, _changed: int, _size: int) -> FrameSheet:
    clip, stated = read_clip(path)
    count = min(len(clip), MOST_OF_ALL if width is None else MOST_FRAMES[width])
    chosen = clip[np.linspace(0, len(clip) - 1, count).round().astype(int)]
    tall, wide = clip.shape[1:3]
    columns = max(1, math.ceil(math.sqrt(count * tall / wide)))
    rows = math.ceil(count / columns)
    scale = min(1.0, LARGEST / (columns * wide), LARGEST / (rows * tall))
    scale = min(scale, TALLEST / tall, WIDEST / wide) if width is None else min(scale, width / wide)
    size = max(1, round(wide * scale)), max(1, round(tall * scale))
    sheet = Image.new("RGB", (columns * size[0], rows * size[1]))
    for index, frame in enumerate(chosen):
        picture = Image.fromarray(frame)
        if picture.size != size:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(picture, (index % columns * size[0], index // columns * size[1]))
    out, kind = io.BytesIO(), "image/jpeg"
    if width is not None:
        sheet.save(out, "JPEG", quality=88)
    elif size[1] > LOSSLESS:
        sheet.save(out, "JPEG", quality=94, subsampling=0)
    else:
        kind = "image/png"
        sheet.save(out, "PNG")
    return FrameSheet(out.getvalue(), kind, count, columns, *size, (fps or stated or 10.0) * count / len(clip))
