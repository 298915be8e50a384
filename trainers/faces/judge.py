"""The face report as the judge of a run's held-out videos."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UserError
from ..prompts import PromptItem
from .items import ItemReports
from .users import BUILT_IN, Recogniser
from .weights import release_networks


class FaceJudge:
    """`identity` of videos: the share of each in which the right people are recognised, from 0 to 1.

    It is the headline of the face report, and 0 for a video whose faces are too small or blurred to be recognised;
    `people`: the same of each person.
    """

    def __init__(self, reports: ItemReports) -> None:
        self.reports = reports

    def __call__(self, videos: Tensor, items: Sequence[PromptItem]) -> dict[str, list]:
        """`identity` and `people` of each video, uint8 [n, F, H, W, 3]."""
        reports = self.reports(videos, items)
        release_networks()
        return {
            "identity": [report.headline or 0.0 for report in reports],
            "people": [[person.score or 0.0 for person in report.people] for report in reports],
        }


def face_judge(items: Sequence[PromptItem], fps: float, recogniser: Recogniser = BUILT_IN) -> FaceJudge | None:
    """The judge of these items; None when one of their reference images shows no face that can be judged."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return FaceJudge(ItemReports.find(items, fps, device, recogniser))
    except UserError:
        return None
    finally:
        release_networks()
