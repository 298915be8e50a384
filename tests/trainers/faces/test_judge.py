"""The face report as the judge of a run's videos."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers.faces.judge import face_judge
from trainers.prompts import PromptItem


@pytest.fixture(scope="module")
def items(portraits) -> list[PromptItem]:
    people = {name: portraits[name] for name in ("collins", "obama")}
    return [
        PromptItem("two", "they talk", tuple(people.values())),
        PromptItem("one", "he talks", (people["obama"],)),
    ]


def test_videos_are_measured_by_the_people_of_their_items(items, scene):
    frame = scene(("hopper", 30, 40, 140), ("obama", 240, 40, 140))
    videos = torch.from_numpy(np.stack([frame, frame]))[:, None]
    found = face_judge(items, 10.0)(videos, items)
    assert found["identity"] == pytest.approx([0.5, 1.0], abs=0.02)
    (first, second), (alone,) = found["people"]
    assert (first, second, alone) == pytest.approx((0, 1, 1), abs=0.02)


def test_a_video_without_faces_is_0(items):
    videos = torch.full((1, 1, 64, 96, 3), 120, dtype=torch.uint8)
    assert face_judge(items[1:], 10.0)(videos, items[1:]) == {"identity": [0.0], "people": [[0.0]]}


def test_items_without_faces_have_no_judge(items):
    grey = PromptItem("grey", "nobody", (np.full((64, 64, 3), 90, np.uint8),))
    assert face_judge([*items, grey], 10.0) is None
