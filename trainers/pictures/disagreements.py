"""A board of pairs of clips about which two rewards disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from . import layout
from .reading import Picture

FRAME = 200  # pixels of a frame's width
NONE, A, B = "a tie", "A", "B"


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
    strips = [
        layout.labelled(layout.strip([layout.scaled(np.asarray(frame), FRAME) for frame in clip]), name, note, colour)
        for clip, name, note, colour in zip(
            pair.clips,
            ("A", "B"),
            [
                ", ".join(
                    f"{who} {'+' if margin >= 0 else ''}{margin:.2f}"
                    for who, margin in zip(names, pair.margins, strict=True)
                ),
                "",
            ],
            (layout.BLUE, layout.ORANGE),
            strict=True,
        )
    ]
    both = layout.stack(strips, 4, 0)
    verdict = {1: A, -1: B, 0: NONE}[pair.label]
    right = [name for name, margin in zip(names, pair.margins, strict=True) if (margin > 0) == (pair.label > 0)]
    text = f"verdict: {verdict}" + (f"; {right[0]} agrees" if pair.label and len(right) == 1 else "")
    (column,) = layout.columns([pair.references], [both.height])
    return layout.captioned(column, both, text + (f" ({pair.kind})" if pair.kind else ""))
