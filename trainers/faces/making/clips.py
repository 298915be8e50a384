"""How often the report finds a fault that is there, and one that is not: the table of `web/docs/faces.md`.

`python -m trainers.faces.making.clips FOLDER [CLIPS [KIND ...]]`, with the FOLDER of `photos`. Each clip shows two
people cut out of photographs that move, turn and change in light; the reference images are other photographs of them.
CLIPS (default 30) are made of each KIND (default: all).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from ..report import FaceReport, People, find_people, join_people, report
from .photos import DEVICE, Photo, load_photos, resized

FRAMES, FPS, FRAME = 11, 5.0, (480, 272)
SIZES = (40, 80)  # pixels of the faces, from and to
HOLD = 3  # frames that one photograph is shown before the next of the same person


@dataclass
class Actor:
    """What one place of a clip shows in each frame, and how it moves."""

    photos: list[Photo]  # one per frame
    middle: tuple[float, float]
    size: float
    phase: float


Script = Callable[[np.random.Generator, "Cast"], list[Actor]]


@dataclass
class Cast:
    """Two people with a reference image each, and photographs of others."""

    references: list[Photo]
    shows: list[list[Photo]]  # per person the photographs that a clip may show: not the reference
    strangers: list[Photo]


def make_clip(actors: list[Actor], rng: np.random.Generator) -> np.ndarray:
    """uint8 [FRAMES, H, W, 3]."""
    shade = rng.integers(40, 200, (5, 8, 3), np.uint8)
    background = Image.fromarray(shade).resize(FRAME, Image.Resampling.BICUBIC)
    light = 1 + 0.15 * np.sin(np.linspace(0, 3, FRAMES) + rng.uniform(0, 6))
    frames = []
    for number in range(FRAMES):
        frame = background.copy()
        for actor in actors:
            _paste(frame, actor, number)
        frames.append(np.clip(np.asarray(frame) * light[number], 0, 255).astype(np.uint8))
    return np.stack(frames)


def _paste(frame: Image.Image, actor: Actor, number: int) -> None:
    time = number / FRAMES * 2 * np.pi + actor.phase
    photo = resized(actor.photos[number], actor.size * (1 + 0.08 * np.sin(time)))
    x0, y0, x1, y1 = photo.box
    picture = Image.fromarray(photo.pixels)
    mask = Image.new("L", picture.size, 0)
    width, height = x1 - x0, y1 - y0
    ImageDraw.Draw(mask).ellipse((x0 - 0.5 * width, y0 - 0.6 * height, x1 + 0.5 * width, y1 + 0.5 * height), fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(actor.size / 12))
    middle = (x0 + x1) / 2, (y0 + y1) / 2
    turn = 6 * np.sin(1.3 * time)
    turned = [p.rotate(turn, Image.Resampling.BICUBIC, center=middle) for p in (picture, mask)]
    at = actor.middle[0] + 12 * np.sin(time) - middle[0], actor.middle[1] + 6 * np.cos(time) - middle[1]
    frame.paste(turned[0], (round(at[0]), round(at[1])), turned[1])


def _held(photos: list[Photo], rng: np.random.Generator) -> list[Photo]:
    """A photograph for each frame, every one for HOLD frames."""
    order = rng.permutation(len(photos))
    return [photos[order[number // HOLD % len(photos)]] for number in range(FRAMES)]


def _actors(shows: list[list[Photo]], rng: np.random.Generator) -> list[Actor]:
    step = FRAME[0] / len(shows)
    places = [(step * (index + 0.5), FRAME[1] / 2) for index in range(len(shows))]
    most = min(SIZES[1], step * 0.55)
    return [
        Actor(photos, place, rng.uniform(SIZES[0], most), rng.uniform(0, 6))
        for photos, place in zip(shows, places, strict=True)
    ]


def correct(rng, cast):
    return _actors([_held(photos, rng) for photos in cast.shows], rng)


def swapped(rng, cast):
    first, second = (_held(photos, rng) for photos in cast.shows)
    half = FRAMES // 2
    return _actors([first[:half] + second[half:], second[:half] + first[half:]], rng)


def missing(rng, cast):
    return _actors([_held(cast.shows[0], rng)], rng)


def duplicated(rng, cast):
    first, second = (_held(photos, rng) for photos in cast.shows)
    return _actors([first, second, list(first)], rng)


def replaced(rng, cast):
    """A stranger in the place of the second person from the middle on."""
    first, second = (_held(photos, rng) for photos in cast.shows)
    half = FRAMES // 2
    return _actors([first, second[:half] + [_stranger(rng, cast)] * (FRAMES - half)], rng)


def joined(rng, cast):
    """Both people and a stranger."""
    return _actors([*(_held(photos, rng) for photos in cast.shows), [_stranger(rng, cast)] * FRAMES], rng)


def morphed(rng, cast):
    """The second person becomes a stranger little by little."""
    start, end = cast.shows[1][int(rng.integers(len(cast.shows[1])))], _stranger(rng, cast)
    blends = [_blend(start, end, min(1, number / (FRAMES - 4))) for number in range(FRAMES)]
    return _actors([_held(cast.shows[0], rng), blends], rng)


def copied(rng, cast):
    """The second person is the reference image itself."""
    return _actors([_held(cast.shows[0], rng), [cast.references[1]] * FRAMES], rng)


def _stranger(rng: np.random.Generator, cast: Cast) -> Photo:
    return cast.strangers[int(rng.integers(len(cast.strangers)))]


def _blend(start: Photo, end: Photo, part: float) -> Photo:
    """`start` with the face of `end` over its own, `part` opaque."""
    box = [round(side) for side in start.box]
    other = resized(end, start.size)
    ox, oy = round((other.box[0] + other.box[2]) / 2), round((other.box[1] + other.box[3]) / 2)
    layer = Image.fromarray(start.pixels.copy())
    middle = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
    layer.paste(Image.fromarray(other.pixels), (middle[0] - ox, middle[1] - oy))
    pixels = np.asarray(Image.blend(Image.fromarray(start.pixels), layer, part))
    return Photo(start.person, start.shot, pixels, start.box)


# Kind of clip -> how it is made, and the alarms of which at least one must be raised.
KINDS: dict[str, tuple[Script, set[str]]] = {
    "right people": (correct, set()),
    "swapped half-way": (swapped, {"swap"}),
    "one missing": (missing, {"missing"}),
    "one twice": (duplicated, {"duplicate"}),
    "one replaced half-way": (replaced, {"missing", "stranger"}),
    "a stranger besides": (joined, {"stranger"}),
    "one becomes a stranger": (morphed, {"drift", "missing", "stranger"}),
    "reference image pasted": (copied, {"copy"}),
}
# Alarms that may be raised besides: the same fault seen from another side.
BESIDES = {"one replaced half-way": {"drift"}}


def sample_cast(photos: list[Photo], rng: np.random.Generator) -> Cast:
    by_person: dict[str, list[Photo]] = {}
    for photo in photos:
        by_person.setdefault(photo.person, []).append(photo)
    several = [person for person, own in by_person.items() if len(own) > 1]
    pair = [several[i] for i in rng.choice(len(several), 2, replace=False)]
    references, shows = [], []
    for person in pair:
        own = [by_person[person][i] for i in rng.permutation(len(by_person[person]))]
        references.append(own[0])
        shows.append(own[1:5])
    strangers = [photo for photo in photos if photo.person not in pair]
    return Cast(references, shows, strangers)


def main(folder: Path, clips: int, kinds: list[str]) -> None:
    # Not larger than they are shown, so that each frame is made quickly.
    photos = [resized(photo, 2 * SIZES[1]) if photo.size > 2 * SIZES[1] else photo for photo in load_photos(folder)]
    print(f"| {clips} clips of each kind | alarms of the fault | false alarms | headline: mean (least, most) |")
    print("|---|---|---|---|", flush=True)
    known: dict[int, People] = {}
    for kind in kinds:
        script, wanted = KINDS[kind]
        hits, false, headlines = 0, Counter(), []
        for number in range(clips):
            rng = np.random.default_rng([number, *kind.encode()])
            cast = sample_cast(photos, rng)
            found = _report_of(script(rng, cast), cast, rng, known)
            raised = {alarm.kind for alarm in found.alarms}
            hits += bool(raised & wanted)
            false.update(raised - wanted - BESIDES.get(kind, set()))
            headlines.append(-1.0 if found.headline is None else found.headline)
        listed = ", ".join(f"{count} {name}" for name, count in sorted(false.items())) or "none"
        shown = f"{np.mean(headlines):.2f} ({min(headlines):.2f}, {max(headlines):.2f})"
        print(f"| {kind} | {f'{hits} of {clips}' if wanted else ''} | {listed} | {shown} |", flush=True)


def _report_of(actors: list[Actor], cast: Cast, rng: np.random.Generator, known: dict[int, People]) -> FaceReport:
    """`known`: the people of photographs that were references before, by their identity in memory."""
    for photo in cast.references:
        if id(photo) not in known:
            known[id(photo)] = find_people([photo.pixels], DEVICE)
    people = join_people([known[id(photo)] for photo in cast.references])
    return report(torch.from_numpy(make_clip(actors, rng)), people, FPS, DEVICE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int((sys.argv[2:3] or [30])[0]), sys.argv[3:] or list(KINDS))
