"""Clips of the base policy and of the policy with LoRA, compared: as a sheet of frames and as an animation."""

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

NAMES = ("base policy", "with LoRA")


def clip_sheet(
    references: Sequence[Sequence[Any]],
    base: Sequence[Any],
    with_lora: Sequence[Any],
    path: str | Path,
    captions: Sequence[str] = (),
    notes: Sequence[tuple[str, str]] = (),
    frames: int = 5,
    frame_width: int = 200,
) -> Path:
    """Write a PNG with a block per item: its reference images, a row of frames of each clip, the prompt above.

    references: pictures (files or uint8 [H, W, 3]) per item; base, with_lora: clips uint8 [F, H, W, 3] per item;
    captions: the prompts; notes: a text for each of the two rows, e.g. the scores. `frames` of each clip are shown,
    evenly spaced.
    """
    strips = []
    for old, new in zip(map(frames_array, base), map(frames_array, with_lora), strict=True):
        chosen = np.linspace(0, len(old) - 1, min(frames, len(old))).round().astype(int)
        strips.append([layout.strip([layout.scaled(clip[i], frame_width) for i in chosen]) for clip in (old, new)])
    columns = layout.columns(references, [2 * rows[0].height + LABEL for rows in strips])
    blocks = [
        _block(column, rows, layout.at_or_empty(captions, index), layout.at_or_empty(notes, index) or ("", ""))
        for index, (column, rows) in enumerate(zip(columns, strips, strict=True))
    ]
    sheet = layout.stack(blocks, gap=28, margin=24)
    return layout.save_png(sheet, path)


def before_after(
    references: Sequence[Sequence[Any]],
    base: Sequence[Any],
    with_lora: Sequence[Any],
    path: str | Path,
    fps: float = 10.0,
    captions: Sequence[str] = (),
    notes: Sequence[tuple[str, str]] = (),
    frame_width: int = 240,
) -> Path:
    """Write an animation (.webp or .gif) with the blocks of `clip_sheet`, the two clips of every item side by side."""
    clips = [(frames_array(old), frames_array(new)) for old, new in zip(base, with_lora, strict=True)]
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
    """Write a PNG of one clip uint8 [F, H, W, 3]: its reference images and `frames` evenly spaced frames in a row."""
    clip = frames_array(clip)
    chosen = np.linspace(0, len(clip) - 1, min(frames, len(clip))).round().astype(int)
    strip = layout.strip([layout.scaled(clip[i], frame_width) for i in chosen])
    column = layout.column([read_picture(p) for p in references], strip.height)
    return layout.save_png(layout.stack([layout.captioned(column, strip, caption, top=8)], 0, 24), path)


def _block(column: Image.Image, rows: Sequence[Image.Image], caption: str, notes: tuple[str, str]) -> Image.Image:
    """References on the left, the rows one above the other on the right, the caption above."""
    right = layout.stack(
        [layout.labelled(*part) for part in zip(rows, NAMES, notes, (FAINT, GREEN), strict=True)], 0, 0
    )
    return layout.captioned(column, right, caption)


def _pair(column: Image.Image, now: Sequence[Image.Image], caption: str, notes: tuple[str, str]) -> Image.Image:
    """References, then the two frames side by side."""
    right = layout.strip([layout.labelled(*part) for part in zip(now, NAMES, notes, (FAINT, GREEN), strict=True)], GAP)
    return layout.captioned(column, right, caption)
