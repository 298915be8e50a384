"""The face report as the judge of a run's held-out videos."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UserError
from ..pictures.reading import read_pixels
from ..prompts import PromptItem
from .report import People, find_people, join_people, report
from .weights import release_networks


class FaceJudge:
    """`identity` of videos: the share of each in which the right people are recognised, from 0 to 1.

    It is the headline of the face report, and 0 for a video whose faces are too small or blurred to be recognised.
    """

    def __init__(self, people: dict[str, People], fps: float, device: torch.device) -> None:
        self.people, self.fps, self.device = people, fps, device

    def __call__(self, videos: Tensor, items: Sequence[PromptItem]) -> dict[str, list[float]]:
        """`identity` of each video, uint8 [n, F, H, W, 3]."""
        found = [
            report(video, self.people[item.id], self.fps, self.device).headline or 0.0
            for video, item in zip(videos, items, strict=True)
        ]
        release_networks()
        return {"identity": found}


def face_judge(items: Sequence[PromptItem], fps: float) -> FaceJudge | None:
    """The judge of these items; None when one of their reference images shows no face that can be judged."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known: dict[object, People] = {}
    try:
        for reference in (reference for item in items for reference in item.references):
            if _key(reference) not in known:
                known[_key(reference)] = find_people([read_pixels(reference)], device)
    except UserError:
        return None
    finally:
        release_networks()
    people = {item.id: join_people([known[_key(reference)] for reference in item.references]) for item in items}
    return FaceJudge(people, fps, device)


def _key(reference: object) -> object:
    """A file is known by its path, a picture in memory by the array itself."""
    return str(reference) if isinstance(reference, str) or hasattr(reference, "__fspath__") else id(reference)
