"""Pictures that nodes show: the items of a prompt set, the score of a clip, the comparison of two clips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from . import layout
from .reading import Picture, read_picture

WIDTH = 900
PORTRAIT, LARGEST, FRAME = (
    84,
    160,
    220,
)  # pixels: a reference image in a prompt set, at most beside a clip; a frame's width
PEOPLE, BESIDE = 4 * (PORTRAIT + 4), 210  # pixels of width for all reference images beside a prompt, beside a clip
PORTRAIT_PIXELS = (4 * PORTRAIT) ** 2  # read of a reference image: enough for a smooth portrait, quick for a photograph
FRAMES_IN_A_ROW = 4
LINES = 8  # shown of a prompt
VERDICT = 30  # pixels of a comparison's result: a node shows the picture at a third of its size


class Row(Protocol):
    """What a board shows of an item of a prompt set."""

    @property
    def id(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def references(self) -> Sequence[Picture]: ...


def prompt_board(items: Sequence[Row], total: int, part: str = "first") -> np.ndarray:
    """Reference images and prompts of the `part` (first, last) items of `total`: uint8 [H, W, 3]."""
    rows = []
    for item in items:
        people = _portraits([read_picture(reference, PORTRAIT_PIXELS) for reference in item.references])
        width = WIDTH - people.width - layout.GAP
        rows.append(_beside([people, _text([*_lines(item.id, width), *_lines(item.prompt, width)], width)]))
    head = "1 item" if total == 1 else f"{total} items"
    head += "" if len(items) == total else f", the {part} {len(items)} of them"
    return np.asarray(layout.stack([_text([head], WIDTH), *rows], 10, 16))


def score_board(
    clip: np.ndarray, seen: Sequence[int], references: Sequence[np.ndarray], score: float, fps: float, prompt: str = ""
) -> np.ndarray:
    """The score, the reference images and the frames (indices `seen` of the clip) that it was computed from."""
    frames = _frames([_frame(clip[i], f"frame {i}, {i / fps:.1f} s") for i in seen])
    head = f"identity score {score:.3f}   (only differences between scores mean something)"
    people = _people(references, frames.height)
    return np.asarray(layout.stack([_text([head, *_lines(prompt, WIDTH)], WIDTH), _beside([people, frames])], 10, 16))


def compare_board(
    clips: tuple[np.ndarray, np.ndarray],
    seen: tuple[Sequence[int], Sequence[int]],
    references: Sequence[np.ndarray],
    scores: tuple[float, float],
    chances: tuple[float, float, float],
    names: tuple[str, str] = ("A", "B"),
) -> np.ndarray:
    """Both clips one above the other beside the reference images, with a verdict.

    chances: the probabilities that A is better, that they tie, that B is better.
    """
    strips = [
        layout.labelled(_frames([_frame(clip[i]) for i in places]), name, f"score {score:.3f}", colour)
        for clip, places, name, score, colour in zip(
            clips, seen, names, scores, (layout.BLUE, layout.ORANGE), strict=True
        )
    ]
    both = layout.stack(strips, 6, 0)
    people = _people(references, both.height)
    return np.asarray(layout.stack([_text([verdict(chances, names)], WIDTH, VERDICT), _beside([people, both])], 10, 16))


def verdict(chances: tuple[float, float, float], names: tuple[str, str] = ("A", "B")) -> str:
    """`B preserves the identities better: 83%, tie 12%, A 5%`, or `about the same: …` when a tie is the likeliest."""
    a, tie, b = chances
    if tie >= max(a, b):
        return f"about the same: tie {tie:.0%}, {names[0]} {a:.0%}, {names[1]} {b:.0%}"
    better, worse = names if a > b else names[::-1]
    return f"{better} preserves the identities better: {max(a, b):.0%}, tie {tie:.0%}, {worse} {min(a, b):.0%}"


def _people(references: Sequence[np.ndarray], height: int) -> Image.Image:
    """The reference images as large as `height` and BESIDE allow, in columns."""
    for rows in range(1, len(references) + 1):
        side = max(1, min(LARGEST, (height + 6) // rows - 6))
        if math.ceil(len(references) / rows) * (side + layout.GAP) <= BESIDE:
            break
    cells = [_fitted(Image.fromarray(reference), side) for reference in references]
    columns = [layout.stack(cells[i : i + rows], 6, 0) for i in range(0, len(cells), rows)]
    return _beside(columns)


def _portraits(pictures: Sequence[Image.Image]) -> Image.Image:
    """The reference images side by side, in rows no wider than PEOPLE."""
    rows: list[list[Image.Image]] = [[]]
    for cell in (_fitted(picture, PORTRAIT) for picture in pictures):
        if rows[-1] and sum(c.width + 4 for c in (*rows[-1], cell)) > PEOPLE:
            rows.append([])
        rows[-1].append(cell)
    return layout.stack([_beside(row, 4) for row in rows], 4, 0)


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    """The whole picture, scaled to fit a square of this side."""
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, layout.smooth_filter(max(picture.size), side))


def _frames(pictures: Sequence[Image.Image]) -> Image.Image:
    rows = [pictures[i : i + FRAMES_IN_A_ROW] for i in range(0, len(pictures), FRAMES_IN_A_ROW)]
    return layout.stack([layout.strip(row) for row in rows], 4, 0)


def _lines(text: str, width: int) -> list[str]:
    lines = layout.wrapped(text, width)
    return lines if len(lines) <= LINES else [*lines[:LINES], "…"]


def _frame(frame: np.ndarray, caption: str = "") -> Image.Image:
    picture = layout.scaled(np.asarray(frame), FRAME)
    return layout.labelled(picture, "", caption, layout.FAINT) if caption else picture


def _text(lines: Sequence[str], width: int, size: int = 15) -> Image.Image:
    canvas = Image.new("RGB", (width, max(1, (size + 5) * len(lines))), layout.PAPER)
    for number, line in enumerate(lines):
        layout.write(canvas, (0, (size + 5) * number), line, size=size)
    return canvas


def _beside(pictures: Sequence[Image.Image], gap: int = layout.GAP) -> Image.Image:
    height = max(picture.height for picture in pictures)
    canvas = Image.new("RGB", (sum(p.width + gap for p in pictures) - gap, height), layout.PAPER)
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, 0))
        left += picture.width + gap
    return canvas
