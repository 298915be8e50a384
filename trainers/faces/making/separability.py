"""How well distances tell people apart, by face size and damage: the tables of `web/docs/faces.md`.

`python -m trainers.faces.making.separability FOLDER [FACES ...]`, with the FOLDER of `photos`; FACES are rows of the
table (default: all). A reference is a photo at its own size; a probe is another photo of which the face is reduced and
damaged, in a frame in which it is detected first. Rates are means over people, so that a person with many photos counts
once; intervals are bootstrapped over people.
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
from ..detect import Faces, cut_chips, detect
from ..embed import can_judge, embed
from ..weights import load_networks
from .photos import DEVICE, Photo, load_photos, resized

FRAME, LARGE_FRAME = (480, 272), (832, 480)
GREY = (110, 110, 110)
SIZES = (16, 20, 24, 28, 32, 40, 48, 64, 96, 128)
SMALL_SIZES = (20, 24, 28, 32)  # also in a large frame
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
    **{f"{size} px, frame of 832x480": (size, None) for size in SMALL_SIZES},
    **{f"{DAMAGED} px, blur of {r} px": (DAMAGED, blurred(r)) for r in (1, 2, 3)},
    **{f"{DAMAGED} px, JPEG quality {q}": (DAMAGED, compressed(q)) for q in (50, 20, 10)},
    **{f"{DAMAGED} px, rotated by {d} degrees": (DAMAGED, rotated(d)) for d in (15, 30, 45)},
    **{f"{DAMAGED} px, brightness {b:g}": (DAMAGED, darkened(b)) for b in (0.5, 0.25)},
}


def frame_of(
    photo: Photo, size: int, damage: Damage | None, shape: tuple[int, int] = FRAME
) -> tuple[np.ndarray, tuple[float, float]]:
    """A frame with the photo in its middle, its face of `size` pixels, and the middle of that face."""
    small = resized(photo, size)
    middle = ((small.box[0] + small.box[2]) / 2, (small.box[1] + small.box[3]) / 2)
    frame = Image.new("RGB", shape, GREY)
    at = round(shape[0] / 2 - middle[0]), round(shape[1] / 2 - middle[1])
    frame.paste(Image.fromarray(small.pixels), at)
    frame = damage(frame) if damage else frame
    return np.asarray(frame), (shape[0] / 2, shape[1] / 2)


def embed_found(frames: list[np.ndarray], middles: list[tuple[float, float]]) -> torch.Tensor:
    """The embedding of the face around each frame's `middle`, NaN where none is found, and whether the report would
    judge it: [n, 129].
    """
    faces = detect(torch.from_numpy(np.stack(frames)), DEVICE)
    numbers = torch.cat([embed(faces), can_judge(faces)[:, None]], 1)
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


COLUMNS = (
    "faces",
    "probes",
    "found",
    "of these judged",
    "distance, same person: median (5% to 95%)",
    "EER (95% CI)",
    "judged: not recognised",
    f"taken for another, at {OTHER:g}",
)


def main(folder: Path, conditions: list[str]) -> None:
    photos = load_photos(folder)
    people, kinds = [photo.person for photo in photos], pair_kinds(photos)
    probing = probes_of(people)
    references = torch.cat([embed_own(photo) for photo in photos])[:, :-1]
    rng = np.random.default_rng(0)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for name in conditions:
        size, damage = CONDITIONS[name]
        shape = LARGE_FRAME if name.endswith("832x480") else FRAME
        chosen = [i for i in probing if photos[i].size > 0.95 * size]
        made = [frame_of(photos[i], size, damage, shape) for i in chosen]
        parts = [embed_found(*map(list, zip(*made[k : k + 8], strict=True))) for k in range(0, len(made), 8)]
        *_, judged = probes = torch.cat(parts).T
        distances = torch.cdist(references, probes[:-1].T).numpy()
        cells = row(distances, kinds[:, chosen], people, judged.numpy(), rng)
        print(f"| {name} | {len(chosen)} | {' | '.join(cells)} |", flush=True)


def row(
    distances: np.ndarray, kinds: np.ndarray, people: list[str], judged: np.ndarray, rng: np.random.Generator
) -> list[str]:
    """The cells of COLUMNS from "found" on. `judged`: of each probe 1, 0, or NaN where it was not found."""
    found = ~np.isnan(judged)
    cells = [f"{found.mean():.0%}", f"{np.nanmean(judged):.0%}" if found.any() else "–"]
    every = rates(distances, kinds, people, rng)
    clear = rates(np.where(judged == 1, distances, np.nan), kinds, people, rng)
    if not every:
        return [*cells, *["–"] * 4]
    median, low, high = np.nanquantile(distances[kinds == 1], [0.5, 0.05, 0.95])
    cells.append(f"{median:.2f} ({low:.2f} to {high:.2f})")
    cells.append(f"{every['eer']:.1%} ({every['low']:.1%} to {every['high']:.1%})")
    return cells + [f"{clear[name]:.1%}" if clear else "–" for name in ("miss", "alarm")]


def embed_own(photo: Photo) -> torch.Tensor:
    """The embedding of a photo's own face, in its own size, as `embed_found` returns it: [1, 129]."""
    box = torch.tensor([photo.box])
    with torch.no_grad():
        chips = cut_chips(load_networks(DEVICE), [torch.from_numpy(np.array(photo.pixels))], box)
    face = Faces(torch.zeros(1, dtype=torch.int64), box, torch.ones(1), chips)
    return torch.cat([embed(face), can_judge(face)[:, None]], 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(CONDITIONS))
