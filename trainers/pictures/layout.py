"""Parts that the pictures of this folder are composed of: strips, columns, captions and fonts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..files import atomic_file
from .reading import read_picture

PAPER, INK, FAINT = "#ffffff", "#22252b", "#8a919c"
GAP, LABEL = 12, 26
BLUE, ORANGE, GREEN, PURPLE = "#2563eb", "#ea580c", "#15803d", "#7c3aed"
WIDE_FONTS = (  # of Linux, Windows and macOS, for letters that Pillow's default font lacks
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "STHeiti Medium.ttc",
    "DejaVuSans.ttf",
    "arial.ttf",
    "Arial Unicode.ttf",
)


def save_png(picture: Image.Image, path: str | Path) -> Path:
    """Write the picture; its folder is made, an old file is replaced only when the new one is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, sync=False) as aside:
        picture.save(aside, format="PNG", optimize=True)
    return path


def captioned(column: Image.Image, right: Image.Image, caption: str, top: int = 0) -> Image.Image:
    """`column` and `right` side by side, their lower edges aligned, below the caption and a gap of `top` pixels."""
    lines = wrapped(caption, column.width + GAP + right.width)
    top += 20 * len(lines)
    canvas = Image.new("RGB", (column.width + GAP + right.width, top + right.height), PAPER)
    for number, line in enumerate(lines):
        write(canvas, (0, 20 * number), line)
    canvas.paste(column, (0, canvas.height - column.height))
    canvas.paste(right, (column.width + GAP, top))
    return canvas


def labelled(picture: Image.Image, name: str, note: str, colour: str) -> Image.Image:
    """The picture with its name in `colour` and a note above it."""
    canvas = Image.new("RGB", (picture.width, picture.height + LABEL), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((0, 5), name, fill=colour, font=font(14))
    draw.text((draw.textlength(name, font=font(14)) + 10, 6), note, fill=INK, font=font(13))
    canvas.paste(picture, (0, LABEL))
    return canvas


def columns(references: Sequence[Sequence[Any]], heights: Sequence[int]) -> list[Image.Image]:
    """A column of reference images per item; all are padded to one width, so that the clips beside them align."""
    columns = [column([read_picture(p) for p in pictures], h) for pictures, h in zip(references, heights, strict=True)]
    width = max(column.width for column in columns)
    return [ImageOps.pad(c, (width, c.height), color=PAPER, centering=(0, 0)) for c in columns]


def column(pictures: Sequence[Image.Image], height: int) -> Image.Image:
    """Pictures one above the other, scaled to fill `height`, each with a frame of 1 pixel."""
    gap = 6
    each = (height - gap * (len(pictures) - 1)) // max(1, len(pictures))
    fitted = [
        p.resize((max(1, round(p.width * each / p.height)), each), smooth_filter(p.height, each)) for p in pictures
    ]
    column = Image.new("RGB", (max((p.width for p in fitted), default=1), height), PAPER)
    for index, picture in enumerate(fitted):
        column.paste(picture, (0, index * (each + gap)))
        frame = (0, index * (each + gap), picture.width - 1, index * (each + gap) + each - 1)
        ImageDraw.Draw(column).rectangle(frame, outline="#d5d9e0")
    return column


def scaled(frame: np.ndarray, width: int) -> Image.Image:
    """A frame about `width` wide: a smaller one is enlarged by a whole factor, a larger one is resampled."""
    picture = Image.fromarray(frame)
    if picture.width < width:
        factor = max(1, round(width / picture.width))
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)


def smooth_filter(old: int, new: int) -> Image.Resampling:
    """The resampling filter for a change from `old` to `new` pixels."""
    return Image.Resampling.LANCZOS if new < old else Image.Resampling.BICUBIC


def strip(pictures: Sequence[Image.Image], gap: int = 4) -> Image.Image:
    """Pictures of one height side by side."""
    strip = Image.new("RGB", (sum(p.width + gap for p in pictures) - gap, pictures[0].height), PAPER)
    left = 0
    for picture in pictures:
        strip.paste(picture, (left, 0))
        left += picture.width + gap
    return strip


def stack(blocks: Sequence[Image.Image], gap: int, margin: int) -> Image.Image:
    """Pictures one above the other, with a margin around them all."""
    width, height = max(b.width for b in blocks), sum(b.height + gap for b in blocks) - gap
    canvas = Image.new("RGB", (width + 2 * margin, height + 2 * margin), PAPER)
    top = margin
    for block in blocks:
        canvas.paste(block, (margin, top))
        top += block.height + gap
    return canvas


def wrapped(text: str, width: int) -> list[str]:
    """Lines no wider than `width` pixels; a longer word (Chinese has no spaces) is broken."""
    measure = font(15, text).getlength
    lines: list[str] = []
    for word in text.split():
        if lines and measure(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and measure(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def write(canvas: Image.Image, at: tuple[int, int], text: str, colour: str = INK, size: int = 15) -> None:
    """Write one line of text on `canvas`, its upper left corner at `at`."""
    ImageDraw.Draw(canvas).text(at, text, fill=colour, font=font(size, text))


def font(size: int, text: str = "") -> ImageFont.ImageFont:
    """The font that lacks the fewest letters of this text: Pillow's default, or else one of `WIDE_FONTS`."""
    missing = {letter for letter in text if not letter.isspace() and _lacks(None, letter)}
    there = [name for name in (None, *(WIDE_FONTS if missing else ())) if _open(name, size)]
    return _open(min(there, key=lambda name: sum(_lacks(name, letter) for letter in missing)), size)


@cache
def _open(name: str | None, size: int) -> ImageFont.ImageFont | None:
    """The named font, Pillow's default for no name; None when this machine has no font of that name."""
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:
        return None


@cache
def _lacks(name: str | None, letter: str) -> bool:
    """Whether the font shows the letter as it shows a character that no font has."""
    shapes = [_open(name, 20).getmask(letter) for letter in (letter, "\uffff")]
    return shapes[0].size == shapes[1].size and bytes(shapes[0]) == bytes(shapes[1])


def at_or_empty(values: Sequence[Any], index: int) -> Any:
    return values[index] if index < len(values) else ""
