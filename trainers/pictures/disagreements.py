"""A board of pairs of clips about which two rewards disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from . import layout
from .reading import Picture

FRAME, FRAMES = 160, 3  # pixels of a frame's width; frames that are shown of a clip
VERDICTS = {1: "A", -1: "B", 0: "a tie"}


@dataclass(frozen=True)
class Disagreement:
    """A pair: its people, the frames uint8 [F, H, W, 3] of both clips, how much each reward prefers A, and the verdict
    (1: A, -1: B, 0: tie)."""

    references: Sequence[Picture]
    clips: tuple[np.ndarray, np.ndarray]
    margins: tuple[float, float]
    label: int
    kind: str = ""


def disagreement_board(pairs: Sequence[Disagreement], names: tuple[str, str], head: str) -> Image.Image:
    """Every pair with both margins; the reward that agrees with the verdict is named."""
    rows = [_row(pair, names) for pair in pairs]
    title = Image.new("RGB", (max([600, *(row.width for row in rows)]), 24), layout.PAPER)
    layout.write(title, (0, 0), head)
    return layout.stack([title, *rows], 18, 16)


def _row(pair: Disagreement, names: tuple[str, str]) -> Image.Image:
    margins = ", ".join(f"{name} {margin:+.2f}" for name, margin in zip(names, pair.margins, strict=True))
    both = layout.stack([_strip(pair.clips[0], "A", layout.BLUE), _strip(pair.clips[1], "B", layout.ORANGE)], 4, 0)
    right = [name for name, margin in zip(names, pair.margins, strict=True) if (margin > 0) == (pair.label > 0)]
    text = f"votes: {VERDICTS[pair.label]}" + (f", as {right[0]}" if pair.label and len(right) == 1 else "")
    (column,) = layout.columns([pair.references], [both.height])
    return layout.captioned(column, both, f"{margins}; {text}" + (f" ({pair.kind})" if pair.kind else ""))


def _strip(clip: np.ndarray, name: str, colour: str) -> Image.Image:
    """Some frames of the clip, from its first to its last, with its name above them."""
    places = np.linspace(0, len(clip) - 1, min(len(clip), FRAMES)).round().astype(int)
    frames = [layout.scaled(np.asarray(clip[place]), FRAME) for place in places]
    return layout.labelled(layout.strip(frames), name, "", colour)
