"""Whether choosing the best of several clips by the face report raises what an independent embedder sees.

`python -m trainers.faces.making.best_of FOLDER [TRIALS]`, with the FOLDER of `photos`. Of each trial's clips of one
cast some have right people and others a fault of `clips`. The independent embedder is that of `second`. Its measure of
a clip: the mean over frames and people of the best cosine that a face of the frame has with a photograph of the person
other than the report's reference image.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from ...errors import UserError
from ..report import FaceReport, find_people, report
from .clips import FPS, FRAMES, KINDS, SIZES, Cast, make_clip, sample_cast
from .photos import DEVICE, load_photos, resized
from .second import SecondEmbedder

MOST = 8
EVERY = 3  # of the frames are seen by the second embedder: as often as a clip changes its photographs


def second_measure(clip: np.ndarray, found: FaceReport, cast: Cast, embedder: SecondEmbedder) -> float:
    """Mean over people and frames of the best cosine of a face with the person; 0 where the frame shows no face."""
    known = [embedder(p.pixels, p.box) for p in (shows[0] for shows in cast.shows)]
    total, frames = 0.0, range(0, FRAMES, EVERY)
    for number in frames:
        boxes = found.faces.box[found.faces.frame == number].tolist()
        faces = [embedder(clip[number], tuple(box)) for box in boxes]
        for person in known:
            total += max((float(face @ person) for face in faces), default=0.0)
    return total / (len(frames) * len(known))


def interval(values: np.ndarray, rng: np.random.Generator) -> str:
    """The mean with a bootstrapped 95% interval."""
    means = rng.choice(values, (4000, len(values))).mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return f"{values.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def main(folder: Path, trials: int) -> None:
    photos = [resized(photo, 2 * SIZES[1]) if photo.size > 2 * SIZES[1] else photo for photo in load_photos(folder)]
    embedder, kinds = SecondEmbedder(folder), list(KINDS)
    gains: dict[int, list[float]] = {4: [], MOST: []}
    for trial in range(trials):
        rng = np.random.default_rng([trial, 17])
        cast = sample_cast(photos, rng)
        try:
            people = find_people([photo.pixels for photo in cast.references], DEVICE)
        except UserError:
            continue
        headlines, seconds = [], []
        for _ in range(MOST):
            script = KINDS[kinds[int(rng.integers(len(kinds)))]][0]
            clip = make_clip(script(rng, cast), rng)
            found = report(torch.from_numpy(clip), people, FPS, DEVICE)
            headlines.append(found.headline or 0.0)
            seconds.append(second_measure(clip, found, cast, embedder))
        for count, own in gains.items():
            best = int(np.argmax(headlines[:count]))
            own.append(seconds[best] - float(np.mean(seconds[:count])))
    rng = np.random.default_rng(0)
    print("| clips to choose from | gain over a clip at random (95% CI) | trials |\n|---|---|---|")
    for count, own in gains.items():
        print(f"| {count} | {interval(np.array(own), rng)} | {len(own)} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int((sys.argv[2:3] or [20])[0]))
