"""Pictures that answer a question at a glance: what is in a prompt set, how a clip scored, which of two is better."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from . import drawing
from .prompts import PromptItem

WIDTH = 900
REFERENCE, FRAME = 84, 220  # pixels: height of a person's picture, width of a frame


def prompt_board(items: Sequence[PromptItem], total: int) -> np.ndarray:
    """Reference pictures and prompts of the first items of `total`: uint8 [H, W, 3]."""
    rows = []
    for item in items:
        people = drawing.strip([_portrait(reference) for reference in item.references])
        text = _text([f"{item.id}", *drawing.wrapped(item.prompt, WIDTH - people.width - drawing.GAP)], WIDTH - people.width)
        rows.append(_beside([people, text]))
    head = f"{total} items" if len(items) == total else f"{total} items, the first {len(items)} of them"
    return np.asarray(drawing.stack([_text([head], WIDTH, drawing.INK), *rows], 10, 16))


def score_board(
    clip: np.ndarray, seen: Sequence[int], references: Sequence[np.ndarray], score: float, fps: float, prompt: str = ""
) -> np.ndarray:
    """The frames that the reward looked at (places `seen` of the clip), the people they were compared with, and the score."""
    strip = drawing.strip([_frame(clip[i], f"frame {i}, {i / fps:.1f} s") for i in seen])
    head = f"identity score {score:.3f}   (only differences between scores mean something)"
    people = drawing.column(_pictures(references), strip.height)
    return np.asarray(drawing.stack([_text([head, *drawing.wrapped(prompt, WIDTH)], WIDTH), _beside([people, strip])], 10, 16))


def compare_board(
    clips: tuple[np.ndarray, np.ndarray], seen: tuple[Sequence[int], Sequence[int]], references: Sequence[np.ndarray],
    scores: tuple[float, float], chances: tuple[float, float, float], names: tuple[str, str] = ("A", "B"),
) -> np.ndarray:
    """Both clips one above the other beside the people, with a verdict. chances: that A wins, that they tie, that B wins."""
    strips = [
        drawing.labelled(drawing.strip([_frame(clip[i]) for i in places]), name, f"score {score:.3f}", colour)
        for clip, places, name, score, colour in zip(clips, seen, names, scores, (drawing.BLUE, drawing.ORANGE), strict=True)
    ]
    both = drawing.stack(strips, 6, 0)
    people = drawing.column(_pictures(references), both.height)
    return np.asarray(drawing.stack([_text([verdict(chances, names)], WIDTH), _beside([people, both])], 10, 16))


def verdict(chances: tuple[float, float, float], names: tuple[str, str] = ("A", "B")) -> str:
    """`B keeps them better: 83%, tie 12%`, or that neither does."""
    a, tie, b = chances
    if tie >= max(a, b):
        return f"about the same: tie {tie:.0%}, {names[0]} {a:.0%}, {names[1]} {b:.0%}"
    return f"{names[0] if a > b else names[1]} keeps them better: {max(a, b):.0%}, tie {tie:.0%}"


def _pictures(references: Sequence[np.ndarray]) -> list[Image.Image]:
    return [Image.fromarray(reference) for reference in references]


def _portrait(reference) -> Image.Image:
    picture = drawing.read_picture(reference)
    size = max(1, round(picture.width * REFERENCE / picture.height)), REFERENCE
    return picture.resize(size, drawing.smooth_filter(picture.height, REFERENCE))


def _frame(frame: np.ndarray, caption: str = "") -> Image.Image:
    picture = drawing.scaled(np.asarray(frame), FRAME)
    return drawing.labelled(picture, "", caption, drawing.FAINT) if caption else picture


def _text(lines: Sequence[str], width: int, colour: str = drawing.INK) -> Image.Image:
    canvas = Image.new("RGB", (width, max(1, 20 * len(lines))), drawing.PAPER)
    for number, line in enumerate(lines):
        drawing.write(canvas, (0, 20 * number), line, colour)
    return canvas


def _beside(pictures: Sequence[Image.Image]) -> Image.Image:
    height = max(picture.height for picture in pictures)
    canvas = Image.new("RGB", (sum(p.width + drawing.GAP for p in pictures) - drawing.GAP, height), drawing.PAPER)
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, 0))
        left += picture.width + drawing.GAP
    return canvas
