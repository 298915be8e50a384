"""Clips before and after training, side by side: as a sheet of frames and as an animation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import layout
from .clips import frames_array, write_animation
from .layout import FAINT, GAP, GREEN, LABEL
from .reading import read_picture


def clip_sheet(
    references: Sequence[Sequence[Any]],
    before: Sequence[Any],
    after: Sequence[Any],
    path: str | Path,
    captions: Sequence[str] = (),
    notes: Sequence[tuple[str, str]] = (),
    frames: int = 5,
    frame_width: int = 200,
) -> Path:
    """A PNG with a block for each item: its reference pictures, then some frames before and after training, one above the other.

    references: pictures (files or uint8 [H, W, 3]) per item; before, after: uint8 [F, H, W, 3] per item; captions: the prompt;
    notes: what to write beside the two rows, e.g. the scores. `frames` of each clip are shown, evenly spaced.
    """
    strips = []
    for old, new in zip(map(frames_array, before), map(frames_array, after), strict=True):
        chosen = np.linspace(0, len(old) - 1, min(frames, len(old))).round().astype(int)
        strips.append([layout.strip([layout.scaled(clip[i], frame_width) for i in chosen]) for clip in (old, new)])
    columns = layout.columns(references, [2 * rows[0].height + LABEL for rows in strips])
    blocks = [
        _block(column, rows, layout.at_or_empty(captions, index), layout.at_or_empty(notes, index) or ("", ""))
        for index, (column, rows) in enumerate(zip(columns, strips, strict=True))
    ]
    sheet = layout.stack(blocks, gap=28, margin=24)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
    return path


def before_after(
    references: Sequence[Sequence[Any]],
    before: Sequence[Any],
    after: Sequence[Any],
    path: str | Path,
    fps: float = 10.0,
    captions: Sequence[str] = (),
    notes: Sequence[tuple[str, str]] = (),
    frame_width: int = 240,
) -> Path:
    """The same blocks as `clip_sheet`, moving: an animation (.webp or .gif) with the two clips of every item side by side."""
    clips = [(frames_array(old), frames_array(new)) for old, new in zip(before, after, strict=True)]
    columns = layout.columns(references, [layout.scaled(old[0], frame_width).height for old, _ in clips])
    pages = []
    for time in range(max(max(len(old), len(new)) for old, new in clips)):
        blocks = []
        for index, (column, pair) in enumerate(zip(columns, clips, strict=True)):
            now = [layout.scaled(clip[min(time, len(clip) - 1)], frame_width) for clip in pair]
            blocks.append(
                _pair(column, now, layout.at_or_empty(captions, index), layout.at_or_empty(notes, index) or ("", ""))
            )
        pages.append(np.asarray(layout.stack(blocks, gap=18, margin=16)))
    return write_animation(np.stack(pages), path, fps)


def frame_strip(
    references: Sequence[Any], clip: Any, path: str | Path, caption: str = "", frames: int = 5, frame_width: int = 200
) -> Path:
    """A PNG of one clip uint8 [F, H, W, 3]: its reference pictures and `frames` evenly spaced frames in a row."""
    clip = frames_array(clip)
    chosen = np.linspace(0, len(clip) - 1, min(frames, len(clip))).round().astype(int)
    strip = layout.strip([layout.scaled(clip[i], frame_width) for i in chosen])
    column = layout.column([read_picture(p) for p in references], strip.height)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    layout.stack([layout.captioned(column, strip, caption, top=8)], 0, 24).save(path, optimize=True)
    return path


def _block(column: Image.Image, rows: Sequence[Image.Image], caption: str, notes: tuple[str, str]) -> Image.Image:
    """References on the left, the rows one above the other on the right, the caption above."""
    right = layout.stack(
        [layout.labelled(*part) for part in zip(rows, ("before", "after"), notes, (FAINT, GREEN), strict=True)], 0, 0
    )
    return layout.captioned(column, right, caption)


def _pair(column: Image.Image, now: Sequence[Image.Image], caption: str, notes: tuple[str, str]) -> Image.Image:
    """References, then the two frames side by side."""
    right = layout.strip(
        [layout.labelled(*part) for part in zip(now, ("before", "after"), notes, (FAINT, GREEN), strict=True)], GAP
    )
    return layout.captioned(column, right, caption)
