"""Faces of one place followed from frame to frame, to notice when a face there becomes another person's."""

from __future__ import annotations

from itertools import groupby, pairwise

import torch

from .assign import NOBODY
from .detect import Faces, overlap

NEAR = 0.3  # intersection over union from which two faces of neighbouring frames are one track
GAP = 3  # frames that a track survives without a face
LASTING = 3  # judged faces of a track in a row that make an identity certain; shorter runs are noise


def follow(faces: Faces) -> list[list[int]]:
    """Tracks: indices of the faces that follow each other in one place, in the order of frames."""
    tracks: list[list[int]] = []
    frames = faces.frame.tolist()
    for frame, members in groupby(range(len(faces)), key=frames.__getitem__):
        new = list(members)
        alive = [track for track in tracks if frame - frames[track[-1]] <= GAP]
        if alive:
            overlaps = overlap(faces.box[[track[-1] for track in alive]], faces.box[new])
            while overlaps.numel() and overlaps.max() >= NEAR:
                track, face = divmod(int(overlaps.argmax()), len(new))
                alive[track].append(new[face])
                overlaps[track], overlaps[:, face] = -1, -1
        followed = {track[-1] for track in tracks}
        tracks += [[face] for face in new if face not in followed]
    return tracks


def lasting_runs(labels: list[int]) -> list[tuple[int, int, int]]:
    """(label, start, end) of every run of at least LASTING equal labels."""
    runs, start = [], 0
    for label, members in groupby(labels):
        end = start + len(list(members))
        if end - start >= LASTING:
            runs.append((label, start, end))
        start = end
    return runs


def changes(people: list[int]) -> list[tuple[int, int, int]]:
    """(position, before, after): where a track becomes another person; NOBODY and shorter runs are skipped over."""
    runs = [run for run in lasting_runs(people) if run[0] != NOBODY]
    return [(after[1], before[0], after[0]) for before, after in pairwise(runs) if before[0] != after[0]]


def strayed(people: list[int]) -> torch.Tensor:
    """bool [n]: faces of a track that are given to a person other than its first lasting one."""
    runs = [run for run in lasting_runs(people) if run[0] != NOBODY]
    given = torch.tensor(people)
    if not changes(people):
        return torch.zeros(len(people), dtype=torch.bool)
    return (given != NOBODY) & (given != runs[0][0])
