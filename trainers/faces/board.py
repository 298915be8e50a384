"""The picture of a face report: who is who in some frames, and each person's faces over time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from ..pictures import layout
from .assign import NOBODY
from .report import MISSING, SEEN, SWAPPED, UNJUDGED, FaceReport
from .text import headline_text, notes

WIDTH, FRAMES, STEPS = 900, 4, 12
COLOURS = (layout.BLUE, layout.ORANGE, layout.GREEN, layout.PURPLE, "#0e7490", "#be185d", "#854d0e", "#4d7c0f")
STRANGER, GREY = "#dc2626", "#c4c9d1"
BAR = 14  # pixels of height of a person's bar over time
STATES = {MISSING: "missing", SWAPPED: "swapped", UNJUDGED: "unclear"}


def face_board(clip: np.ndarray, report: FaceReport, title: str = "") -> np.ndarray:
    """uint8 [H, W, 3] of a clip (uint8 [F, H, W, 3]) and its report.

    Frames with a box of its person's colour around each face and the similarity, red for strangers, grey for faces that
    cannot be judged. Below, for each person: the reference image's face, faces over time, and a bar of one column per
    frame as high as the similarity, red where the person is missing or swapped, grey where nothing can be judged.
    """
    lines = [part for text in (title, headline_text(report), *notes(report)) for part in layout.wrapped(text, WIDTH)]
    head = Image.new("RGB", (WIDTH, 20 * len(lines)), layout.PAPER)
    for number, line in enumerate(lines):
        layout.write(head, (0, 20 * number), line)
    shown = sorted({round(t) for t in np.linspace(0, len(clip) - 1, FRAMES)})
    width = (WIDTH - 4 * (FRAMES - 1)) // FRAMES
    frames = layout.strip([_frame(clip[index], index, report, width) for index in shown])
    return np.asarray(
        layout.stack([head, frames, *(_strip(clip, report, p) for p in range(len(report.people)))], 10, 16)
    )


def ranking_board(clips: Sequence[np.ndarray], order: Sequence[int], notes: Sequence[str]) -> np.ndarray:
    """uint8 [H, W, 3]: some frames of every clip (uint8 [F, H, W, 3]), best first, with the clip's number and note."""
    width = (WIDTH - 4 * (FRAMES - 1)) // FRAMES
    strips = []
    for place, index in enumerate(order):
        clip = clips[index]
        shown = sorted({round(t) for t in np.linspace(0, len(clip) - 1, FRAMES)})
        frames = layout.strip([_fitted(clip[frame], width) for frame in shown])
        colour = layout.GREEN if place == 0 else layout.INK
        strips.append(layout.labelled(frames, f"{place + 1}.", f"video {index + 1}: {notes[index]}", colour))
    return np.asarray(layout.stack(strips, 10, 16))


def _fitted(frame: np.ndarray, width: int) -> Image.Image:
    picture = Image.fromarray(frame)
    size = (width, max(1, round(picture.height * width / picture.width)))
    return picture.resize(size, layout.smooth_filter(picture.width, width))


def _frame(frame: np.ndarray, index: int, report: FaceReport, width: int) -> Image.Image:
    picture, scale = _fitted(frame, width), width / frame.shape[1]
    pen = ImageDraw.Draw(picture)
    for face in (report.faces.frame == index).nonzero()[:, 0].tolist():
        colour, text = _mark(report, face, index)
        corners = [round(side * scale) for side in report.faces.box[face].tolist()]
        pen.rectangle(corners, outline=colour, width=2)
        at = corners[0], corners[3] + 1 if corners[3] + 16 < picture.height else max(0, corners[1] - 16)
        width = pen.textlength(text, font=layout.font(13))
        pen.rectangle((*at, at[0] + width + 3, at[1] + 15), fill=colour)
        pen.text((at[0] + 2, at[1]), text, fill=layout.PAPER, font=layout.font(13))
    return layout.labelled(picture, "", f"frame {index}, {index / report.fps:.1f} s", layout.FAINT)


def _mark(report: FaceReport, face: int, frame: int) -> tuple[str, str]:
    person = int(report.given[face])
    if person != NOBODY:
        return COLOURS[person % len(COLOURS)], f"{person + 1}: {report.values[person, frame]:.2f}"
    if not report.judgeable[face]:
        return GREY, "unclear"
    return (STRANGER, "stranger") if report.strange[face] else (GREY, "?")


def _strip(clip: np.ndarray, report: FaceReport, person: int) -> Image.Image:
    colour, side = COLOURS[person % len(COLOURS)], (WIDTH - layout.GAP) // (STEPS + 1) - 4
    reference = _chip(report.references.chips[person], side)
    reference = _framed(reference, colour)
    cells = []
    for start in np.linspace(0, len(clip), STEPS, endpoint=False).astype(int):
        frame = min(start + len(clip) // (2 * STEPS), len(clip) - 1)
        cells.append(_cell(report, person, frame, side))
    faces = layout.strip(cells)
    bar = _bar(report, person, faces.width, colour)
    over_time = layout.stack([faces, bar], 3, 0)
    beside = Image.new("RGB", (side + layout.GAP + over_time.width, over_time.height), layout.PAPER)
    beside.paste(reference, (0, 0))
    beside.paste(over_time, (side + layout.GAP, 0))
    layout.write(beside, (4, side), str(person + 1), colour)
    return beside


def _cell(report: FaceReport, person: int, frame: int, side: int) -> Image.Image:
    """The person's face in a frame, or why there is none."""
    here = ((report.given == person) & (report.faces.frame == frame)).nonzero()[:, 0].tolist()
    state = report.states[person, frame]
    if here:
        picture = _chip(report.faces.chips[here[0]], side)
        return picture if state == SEEN else _framed(picture, STRANGER)
    picture = Image.new("RGB", (side, side), "#eef0f3")
    ImageDraw.Draw(picture).text((4, side // 2 - 8), STATES[state], fill=layout.INK, font=layout.font(12))
    return picture


def _bar(report: FaceReport, person: int, width: int, colour: str) -> Image.Image:
    bar = Image.new("RGB", (width, BAR), "#eef0f3")
    pen = ImageDraw.Draw(bar)
    edges = np.linspace(0, width, report.states.shape[1] + 1).round().astype(int)
    for frame, (left, right) in enumerate(pairwise(edges)):
        state = report.states[person, frame]
        if state == UNJUDGED:
            top, fill = 0, GREY
        elif state == SEEN:
            top, fill = round(BAR * (1 - report.values[person, frame])), colour
        else:
            top, fill = BAR - 3, STRANGER
        if right > left:
            pen.rectangle((left, top, right - 1, BAR), fill=fill)
    return bar


def _chip(chip, side: int) -> Image.Image:
    return Image.fromarray(chip.permute(1, 2, 0).cpu().numpy()).resize((side, side), Image.Resampling.LANCZOS)


def _framed(picture: Image.Image, colour: str) -> Image.Image:
    ImageDraw.Draw(picture).rectangle((0, 0, picture.width - 1, picture.height - 1), outline=colour, width=3)
    return picture
