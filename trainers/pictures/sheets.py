"""A clip as one picture: its frames in rows, for programs that show them in step with another clip's."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .clips import read_clip

TALLEST, WIDEST = 480, 848  # pixels of a frame that are shown
LARGEST = 8192  # pixels of a side: what every browser decodes
MOST_FRAMES = 241
SMALL = 160  # frames of at most this height are kept without loss


@dataclass(frozen=True)
class Sheet:
    """An encoded picture of `frames` frames of `width` x `height` in rows of `columns`, shown at `fps` per second."""

    data: bytes
    content_type: str
    frames: int
    columns: int
    width: int
    height: int
    fps: float


def clip_sheet(path: Path, fps: float | None = None) -> Sheet:
    """The sheet of a clip's file; `fps` where the file states none or another. Long clips lose frames evenly.

    Raises UserError for what cannot be read.
    """
    clip, stated = read_clip(path)
    rate, kept = fps or stated or 10.0, min(len(clip), MOST_FRAMES)
    frames = clip[np.linspace(0, len(clip) - 1, kept).round().astype(int)]
    height, width = frames.shape[1:3]
    columns = max(1, math.ceil(math.sqrt(kept * height / width)))
    rows = math.ceil(kept / columns)
    scale = min(1.0, TALLEST / height, WIDEST / width, LARGEST / (columns * width), LARGEST / (rows * height))
    size = max(1, int(width * scale)), max(1, int(height * scale))
    sheet = Image.new("RGB", (columns * size[0], rows * size[1]))
    for index, frame in enumerate(frames):
        picture = Image.fromarray(frame)
        picture = picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(picture, (index % columns * size[0], index // columns * size[1]))
    out = io.BytesIO()
    if size[1] <= SMALL:
        sheet.save(out, format="PNG")
    else:
        sheet.save(out, format="JPEG", quality=94, subsampling=0)
    kind = "image/png" if size[1] <= SMALL else "image/jpeg"
    return Sheet(out.getvalue(), kind, kept, columns, *size, rate * kept / len(clip))
