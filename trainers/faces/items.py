"""Face reports of the videos of prompt items."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..pictures.reading import read_pixels
from ..prompts import PromptItem
from .report import FaceReport, People, find_people, join_people, report
from .users import Recogniser


class ItemReports:
    """Reports the videos of some prompt items, whose people were found in their reference images before."""

    def __init__(self, people: dict[str, People], fps: float, device: torch.device) -> None:
        self.people, self.fps, self.device = people, fps, device

    @classmethod
    def find(
        cls,
        items: Iterable[PromptItem],
        fps: float,
        device: torch.device,
        recogniser: Recogniser,
        check: Callable[[], None] = lambda: None,
    ) -> ItemReports:
        """Find the people of all reference images; `check` is called before each of them and may raise to stop.

        Raises UserError, naming the item, for a reference image without a face that can be judged.
        """
        known: dict[object, People] = {}
        people = {}
        for item in items:
            for number, reference in enumerate(item.references, 1):
                if _key(reference) not in known:
                    check()
                    name = f"reference image {number} of item `{item.id}`"
                    known[_key(reference)] = find_people([read_pixels(reference)], device, [name], recogniser)
            people[item.id] = join_people([known[_key(reference)] for reference in item.references])
        return cls(people, fps, device)

    def __call__(self, videos: Sequence[Tensor] | Tensor, items: Sequence[PromptItem]) -> list[FaceReport]:
        """The report of each video, uint8 [F, H, W, 3]."""
        return [
            report(video, self.people[item.id], self.fps, self.device)
            for video, item in zip(videos, items, strict=True)
        ]


def _key(reference: object) -> object:
    """A file is known by its path, a picture in memory by the array itself."""
    return str(reference) if isinstance(reference, str) or hasattr(reference, "__fspath__") else id(reference)
