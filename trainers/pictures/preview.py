"""Small pictures of a clip, for lists of LoRAs."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from .clips import read_clip

PREVIEW_WIDTH, COVER_WIDTH = 480, 256  # pixels at most
QUALITY = 80
USUAL_RATE = 10.0  # frames per second, where a clip has none


def preview(clip: str | Path) -> bytes:
    """The clip as a small moving WebP with losses. Raises UserError when it cannot be read."""
    frames, rate = read_clip(clip)
    pictures = [_small(frame, PREVIEW_WIDTH) for frame in frames]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / (rate or USUAL_RATE)),
        loop=0,
        quality=QUALITY,
    )
    return buffer.getvalue()


def cover(clip: str | Path) -> bytes:
    """The middle frame of the clip as a JPEG. Raises UserError when it cannot be read."""
    frames, _ = read_clip(clip)
    buffer = io.BytesIO()
    _small(frames[len(frames) // 2], COVER_WIDTH).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _small(frame, width: int) -> Image.Image:
    """No wider than `width`; a smaller one stays as it is."""
    picture = Image.fromarray(frame)
    if picture.width <= width:
        return picture
    return picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.LANCZOS)
