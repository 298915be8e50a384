"""How well distances tell people apart, by face size and damage: the tables of `web/docs/faces.md`.

`python -m trainers.faces.making.separability FOLDER`, with the FOLDER of `photos`. A reference is a photo at its own
size; a probe is another photo of which the face is reduced and damaged, in a frame of 832x480 in which it is detected
first. Rates are means over people, so that a person with many photos counts once; intervals are bootstrapped over
people.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from ..calibration import OTHER
from ..detect import detect
from ..embed import embed
from .photos import DEVICE, Photo, load_photos, resized

FRAME = (832, 480)
GREY = (110, 110, 110)
SIZES = (16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 256)
PROBES = 5  # photos of a person that are reduced and damaged
DAMAGED = 64  # pixels of the faces that are damaged
RESAMPLES = 200

Damage = Callable[[Image.Image], Image.Image]


def blurred(radius: float) -> Damage:
    return lambda picture: picture.filter(ImageFilter.GaussianBlur(radius))


def compressed(quality: int) -> Damage:
    def damage(picture: Image.Image) -> Image.Image:
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=quality)
        return Image.open(data).convert("RGB")

    return damage


def rotated(degrees: float) -> Damage:
    return lambda picture: picture.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=GREY)


def darkened(factor: float) -> Damage:
    return lambda picture: picture.point(lambda value: value * factor)


CONDITIONS: dict[str, tuple[int, Damage | None]] = {
    **{f"{size} px": (size, None) for size in SIZES},
    **{f"{DAMAGED} px, blur of {r} px": (DAMAGED, blurred(r)) for r in (1, 2, 3)},
    **{f"{DAMAGED} px, JPEG quality {q}": (DAMAGED, compressed(q)) for q in (50, 20, 10)},
    **{f"{DAMAGED} px, rotated by {d} degrees": (DAMAGED, rotated(d)) for d in (15, 30, 45)},
    **{f"{DAMAGED} px, brightness {b:g}": (DAMAGED, darkened(b)) for b in (0.5, 0.25)},
}


def frame_of(photo: Photo, size: int, damage: Damage | None) -> tuple[np.ndarray, tuple[float, float]]:
    """A frame with the photo in its middle, its face of `size` pixels, and the middle of that face."""
    small = resized(photo, size)
    middle = ((small.box[0] + small.box[2]) / 2, (small.box[1] + small.box[3]) / 2)
    frame = Image.new("RGB", FRAME, GREY)
    at = round(FRAME[0] / 2 - middle[0]), round(FRAME[1] / 2 - middle[1])
    frame.paste(Image.fromarray(small.pixels), at)
    frame = damage(frame) if damage else frame
    return np.asarray(frame), (FRAME[0] / 2, FRAME[1] / 2)


def embed_found(frames: list[np.ndarray], middles: list[tuple[float, float]]) -> torch.Tensor:
    """The embedding of the face around each frame's `middle`, NaN where none is found: [n, 128]."""
    faces = detect(torch.from_numpy(np.stack(frames)), DEVICE)
    numbers = embed(faces)
    result = torch.full((len(frames), numbers.shape[1]), float("nan"))
    for index, (x, y) in enumerate(middles):
        box = faces.box
        inside = (box[:, 0] < x) & (x < box[:, 2]) & (box[:, 1] < y) & (y < box[:, 3]) & (faces.frame == index)
        if inside.any():
            result[index] = numbers[inside][0]
    return result


def pair_kinds(photos: list[Photo]) -> np.ndarray:
    """[n, n] 1: different photographs (or moments of a video) of one person, 0: different people, -1: left out.

    Left out are a photo with itself, and people of two group pictures of one package, among whom the same may occur.
    """
    kinds = np.zeros((len(photos), len(photos)), int)
    for i, one in enumerate(photos):
        for j, two in enumerate(photos):
            both_groups = one.shot.startswith("party") and two.shot.startswith("party")
            if one.person == two.person:
                kinds[i, j] = 1 if i != j else -1
            elif both_groups and one.shot != two.shot:
                kinds[i, j] = -1
    return kinds


def rates(distances: np.ndarray, kinds: np.ndarray, people: list[str], rng: np.random.Generator) -> dict[str, float]:
    """Error rates of probes (columns) against references (rows): `eer` with `low` and `high`, `auc`, and at OTHER."""
    names = sorted(set(people))
    who = np.array([names.index(person) for person in people])
    seen = ~np.isnan(distances)
    same = [distances[(kinds == 1) & seen & (who[:, None] == k)] for k in range(len(names))]
    other = [distances[(kinds == 0) & seen & (who[:, None] == k)] for k in range(len(names))]
    chosen = [k for k in range(len(names)) if len(same[k])]
    if not chosen:
        return {}
    found = [_eer([same[k] for k in rng.choice(chosen, len(chosen))], other) for _ in range(RESAMPLES)]
    eer, threshold = _eer_at([same[k] for k in chosen], other)
    low, high = np.quantile(found, [0.025, 0.975])
    miss = np.mean([np.mean(same[k] >= OTHER) for k in chosen])
    alarm = np.mean([np.mean(d < OTHER) for d in other if len(d)])
    return {"eer": eer, "low": low, "high": high, "threshold": threshold, "miss": miss, "alarm": alarm}


def _curves(same: list[np.ndarray], other: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    grid = np.linspace(0.2, 1.0, 401)
    misses = np.mean([1 - np.searchsorted(np.sort(d), grid) / len(d) for d in same], 0)
    alarms = np.mean([np.searchsorted(np.sort(d), grid) / len(d) for d in other if len(d)], 0)
    return grid, misses, alarms


def _eer_at(same: list[np.ndarray], other: list[np.ndarray]) -> tuple[float, float]:
    grid, misses, alarms = _curves(same, other)
    best = np.abs(misses - alarms).argmin()
    return float((misses[best] + alarms[best]) / 2), float(grid[best])


def _eer(same: list[np.ndarray], other: list[np.ndarray]) -> float:
    return _eer_at(same, other)[0]


def probes_of(people: list[str]) -> list[int]:
    """Up to PROBES photos of each person of whom there are several."""
    own = {person: [i for i, other in enumerate(people) if other == person] for person in people}
    return sorted(i for of in own.values() if len(of) > 1 for i in of[:: -(-len(of) // PROBES)])


def main(folder: Path) -> None:
    photos = load_photos(folder)
    people, kinds = [photo.person for photo in photos], pair_kinds(photos)
    probing = probes_of(people)
    references = torch.cat([embed_own(photo) for photo in photos])
    rng = np.random.default_rng(0)
    print(
        "| faces | probes | found | same person: median distance (5% to 95%) | other people: 1% quantile "
        f"| EER (95% CI) | not recognised | taken for another, both at {OTHER:g} |\n|---|---|---|---|---|---|---|---|"
    )
    for name, (size, damage) in CONDITIONS.items():
        chosen = [i for i in probing if photos[i].size > 0.95 * size]
        if not chosen:
            continue
        made = [frame_of(photos[i], size, damage) for i in chosen]
        probes = torch.cat(
            [embed_found(*map(list, zip(*made[k : k + 8], strict=True))) for k in range(0, len(made), 8)]
        )
        distances = torch.cdist(references, probes).numpy()
        part = kinds[:, chosen]
        found = ~torch.isnan(probes[:, 0])
        if not found.any():
            print(f"| {name} | {len(chosen)} | 0% | – | – | – | – | – |", flush=True)
            continue
        shown = rates(distances, part, people, rng)
        same, other = (distances[(part == kind) & ~np.isnan(distances)] for kind in (1, 0))
        quantiles = np.quantile(same, [0.5, 0.05, 0.95]) if len(same) else [np.nan] * 3
        print(
            f"| {name} | {len(chosen)} | {found.float().mean():.0%} | {quantiles[0]:.2f} ({quantiles[1]:.2f} to "
            f"{quantiles[2]:.2f}) | {np.quantile(other, 0.01):.2f} | {shown['eer']:.1%} ({shown['low']:.1%} to "
            f"{shown['high']:.1%}) | {shown['miss']:.1%} | {shown['alarm']:.1%} |",
            flush=True,
        )


def embed_own(photo: Photo) -> torch.Tensor:
    """The embedding of a photo's own face, in its own size: [1, 128]."""
    middle = ((photo.box[0] + photo.box[2]) / 2, (photo.box[1] + photo.box[3]) / 2)
    return embed_found([photo.pixels], [middle])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
