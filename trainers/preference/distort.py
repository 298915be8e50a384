"""Pairs of real clips that are labelled by construction: a clip whose people are distorted against one less distorted.

The face judge finds who is where. A distortion changes heads, with soft edges and matched brightness; what it is
compared with went through the same steps with the person's own head, so that seams do not reveal the label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from ..errors import UserError
from ..faces.assign import NOBODY
from ..faces.report import FaceReport, find_people, report
from ..pictures.reading import Picture, read_pixels
from .loss import A_BETTER, B_BETTER, TIE

KINDS = ("swap", "drop", "blend", "drift")
WIDER, ABOVE, BELOW = 0.45, 0.65, 0.25
"""What a head has beside, above and below its face's box, as parts of the box."""
LEAST_FRAMES = 0.5
"""Share of the frames in which a person's face must be found."""
CLEARLY = 0.35
"""Severities that differ by less are not made into a decided pair."""


@dataclass(frozen=True)
class Track:
    """A person's head in every frame of a clip: boxes float [F, 4] (x0, y0, x1, y1) in pixels."""

    person: int
    boxes: np.ndarray


@dataclass(frozen=True)
class DistortedPair:
    """Two versions of one clip, uint8 [F, H, W, 3] each, and the label that is right by construction."""

    video_a: np.ndarray
    video_b: np.ndarray
    label: int
    kind: str


def find_heads(
    clip: np.ndarray, references: Sequence[Picture], device: torch.device | str = "cpu", names: Sequence[str] = ()
) -> list[Track]:
    """The heads of the reference people in a clip uint8 [F, H, W, 3]; people who are hardly seen are left out.

    Raises UserError for a reference image without a face.
    """
    people = find_people([read_pixels(picture) for picture in references], device, list(names))
    return heads_of(report(torch.from_numpy(clip), people, 10.0, device), clip.shape)


def heads_of(found: FaceReport, shape: Sequence[int]) -> list[Track]:
    """The tracks of a face report about a clip of this shape [F, H, W, 3]."""
    frames, height, width = shape[:3]
    tracks = []
    for person in range(len(found.people)):
        boxes: dict[int, np.ndarray] = {}
        for face in ((found.given == person) & (found.given != NOBODY)).nonzero().flatten().tolist():
            boxes.setdefault(int(found.faces.frame[face]), found.faces.box[face].numpy().astype(float))
        if len(boxes) < LEAST_FRAMES * frames:
            continue
        seen = sorted(boxes)
        known = np.stack([boxes[frame] for frame in seen])
        every = np.stack([np.interp(range(frames), seen, known[:, i]) for i in range(4)], 1)
        x0, y0, x1, y1 = every.T
        w, h = x1 - x0, y1 - y0
        every = np.stack([x0 - WIDER * w, y0 - ABOVE * h, x1 + WIDER * w, y1 + BELOW * h], 1)
        tracks.append(Track(person, every.clip(0, [width, height, width, height])))
    return tracks


def distorted_pair(
    clip: np.ndarray,
    tracks: Sequence[Track],
    rng: np.random.Generator,
    kind: str | None = None,
    strangers: Sequence[np.ndarray] = (),
) -> DistortedPair:
    """A pair of one clip: clean against distorted, more against less distorted, or one of eight is a tie.

    kind: one of KINDS (default: any that this clip allows). strangers: pictures uint8 [H, W, 3] of other heads, which
    take the place of a second person in a clip of one. Raises UserError for a clip without a person to distort.
    """
    if not tracks:
        raise UserError("no person of the reference images is seen in the clip; give a clip that shows their faces")
    kind = kind or str(rng.choice(KINDS))
    if kind not in KINDS:
        raise UserError(f"the distortion `{kind}` is unknown; choose one of {', '.join(KINDS)}")
    track = tracks[int(rng.integers(len(tracks)))]
    others = [other for other in tracks if other is not track]
    if kind != "drop" and not others and not len(strangers):
        raise UserError(f"`{kind}` needs a second person; give clips of two people, or of several other people")
    donor: Track | np.ndarray | None = None
    if kind != "drop":
        donor = others[int(rng.integers(len(others)))] if others else strangers[int(rng.integers(len(strangers)))]
    chance = rng.random()
    if chance < 0.125:
        severities = 0.0, 0.0
    elif chance < 0.7:
        severities = 0.0, float(rng.uniform(0.4, 1.0))
    else:
        low = float(rng.uniform(0.15, 0.6))
        severities = low, min(1.0, low + CLEARLY + float(rng.uniform(0, 0.3)))
    videos = [distort(clip, track, donor, kind, severity) for severity in severities]
    flip = bool(rng.random() < 0.5)
    label = TIE if severities[0] == severities[1] else B_BETTER if flip else A_BETTER
    if label == TIE:
        # Otherwise the two were one file: a tie has to look as any other pair does.
        videos[1] = _lighter(videos[1], float(rng.uniform(0.94, 1.06)))
    return DistortedPair(*(videos[::-1] if flip else videos), label, f"distorted: {'none' if label == TIE else kind}")


def distort(clip: np.ndarray, track: Track, donor: Track | np.ndarray | None, kind: str, severity: float) -> np.ndarray:
    """The clip with one person distorted, uint8 [F, H, W, 3]; severity 0 goes through the same steps with the own head.

    swap: the head is the donor's (and the donor's the person's) in the last `severity` of the frames. drop: the head is
    filled with its surroundings there. blend: it is mixed with the donor's, at 1 by six tenths. drift: it becomes the
    donor's little by little, at 1 completely in the last frame.
    """
    frames = len(clip)
    out = clip.copy()
    for number in range(frames):
        time = number / max(1, frames - 1)
        late = float(severity > 0 and time >= 1 - severity)
        amount = {"swap": late, "drop": late, "blend": 0.6 * severity, "drift": severity * time}[kind]
        place = _whole(track.boxes[number])
        if not _large_enough(place):
            continue
        own = _cut(clip[number], place)
        if kind == "drop":
            _paste(out[number], _fill(clip[number], place) if amount else own, place)
            continue
        other = donor if isinstance(donor, np.ndarray) else _cut(clip[number], _whole(donor.boxes[number]))
        _paste(out[number], _mixed(own, other, amount), place)
        if kind == "swap" and isinstance(donor, Track):
            there = _whole(donor.boxes[number])
            if _large_enough(there):
                _paste(out[number], _mixed(_cut(clip[number], there), own, amount), there)
    return out


Box = tuple[int, int, int, int]


def _whole(box: np.ndarray) -> Box:
    x0, y0, x1, y1 = box
    return math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1)


def _large_enough(box: Box) -> bool:
    return box[2] - box[0] >= 8 and box[3] - box[1] >= 8


def _cut(frame: np.ndarray, box: Box) -> np.ndarray:
    x0, y0, x1, y1 = box
    return frame[y0:y1, x0:x1]


def _mixed(own: np.ndarray, other: np.ndarray, amount: float) -> np.ndarray:
    """The head with `amount` of the other one, which is resized to it and has its brightness."""
    size = own.shape[1], own.shape[0]
    # The own head is resampled too: sharpness must not tell the two apart.
    half = tuple(max(1, round(0.85 * side)) for side in size)
    soft = Image.fromarray(np.ascontiguousarray(own)).resize(half, Image.Resampling.BICUBIC)
    soft = np.asarray(soft.resize(size, Image.Resampling.BICUBIC), np.float32)
    if amount == 0:
        return soft.astype(np.uint8)
    fitted = Image.fromarray(np.ascontiguousarray(other)).resize(size, Image.Resampling.BICUBIC)
    fitted = np.asarray(fitted, np.float32)
    fitted = (fitted * (soft.mean() / max(1.0, fitted.mean()))).clip(0, 255)
    return (soft + amount * (fitted - soft)).clip(0, 255).astype(np.uint8)


def _fill(frame: np.ndarray, box: Box) -> np.ndarray:
    """The place of a head as a smooth continuation of what surrounds it."""
    x0, y0, x1, y1 = box
    h, w = y1 - y0, x1 - x0
    top, left = max(0, y0 - h // 3), max(0, x0 - w // 3)
    around = frame[top : min(frame.shape[0], y1 + h // 3), left : min(frame.shape[1], x1 + w // 3)].astype(np.float32)
    known = np.ones(around.shape[:2], np.float32)
    known[y0 - top : y1 - top, x0 - left : x1 - left] = 0
    radius = max(h, w) / 3
    weight = _blurred(known * 255, radius)
    filled = np.stack([_blurred(around[..., c] * known, radius) for c in range(3)], -1)
    filled = filled * 255 / np.maximum(weight, 1.0)[..., None]
    return filled[y0 - top : y1 - top, x0 - left : x1 - left].clip(0, 255).astype(np.uint8)


def _blurred(plane: np.ndarray, radius: float) -> np.ndarray:
    return np.asarray(
        Image.fromarray(plane.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius)), np.float32
    )


def _paste(frame: np.ndarray, head: np.ndarray, box: Box) -> None:
    """Put a head into the frame, in place, through a soft ellipse."""
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    mask = Image.new("L", (w, h), 0)
    edge = max(1, round(0.06 * min(w, h)))
    ImageDraw.Draw(mask).ellipse((edge, edge, w - edge - 1, h - edge - 1), fill=255)
    alpha = np.asarray(mask.filter(ImageFilter.GaussianBlur(edge)), np.float32)[..., None] / 255
    under = frame[y0:y1, x0:x1].astype(np.float32)
    frame[y0:y1, x0:x1] = (under + alpha * (head.astype(np.float32) - under)).round().astype(np.uint8)


def _lighter(video: np.ndarray, factor: float) -> np.ndarray:
    return (video.astype(np.float32) * factor).clip(0, 255).astype(np.uint8)
