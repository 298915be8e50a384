"""The report's numbers on faces whose place, size and distances are given, and once on real ones."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from trainers.errors import UserError
from trainers.faces.assign import NOBODY
from trainers.faces.calibration import JUDGEABLE, OTHER, SAME
from trainers.faces.detect import Faces
from trainers.faces.report import FaceReport, People, find_people, report, summarise

NEAR, FAR = 0.3, 0.9
FRAMES, FPS = 12, 4.0


@dataclass
class Face:
    """A face of one frame: its place on the x axis, distances to the people, and who it was given to."""

    frame: int
    place: float
    distances: tuple[float, ...]
    given: int
    size: float = 60.0
    seed: int = 0


def made(found: list[Face], people: int = 2, apart: float = FAR) -> FaceReport:
    def chips(seeds: list[int]) -> torch.Tensor:
        pictures = [torch.randint(0, 255, (3, 15, 15), generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(pictures).repeat_interleave(10, 2).repeat_interleave(10, 3).byte()

    found = sorted(found, key=lambda face: face.frame)
    box = torch.tensor([[f.place, 0, f.place + f.size, f.size] for f in found])
    frame = torch.tensor([f.frame for f in found])
    faces = Faces(frame, box, torch.ones(len(found)), chips([100 + f.seed for f in found]))
    references = Faces(torch.arange(people), box[:people], torch.ones(people), chips(list(range(people))))
    embeddings = torch.eye(people) * apart / 2**0.5
    judgeable = faces.size >= JUDGEABLE
    distances = torch.tensor([f.distances for f in found])
    distances[~judgeable] = float("inf")
    given = torch.tensor([f.given for f in found])
    return summarise(faces, judgeable, distances, given, People(references, embeddings), FRAMES, FPS)


def person(number: int, place: float, distance: float = NEAR, frames=range(FRAMES), people: int = 2, **more):
    """A person at one place in some frames."""
    distances = tuple(distance if p == number else FAR for p in range(people))
    return [Face(frame, place, distances, number, **more) for frame in frames]


def stranger(place: float, frames=range(FRAMES)):
    return [Face(frame, place, (FAR, FAR), NOBODY) for frame in frames]


def kinds(found: FaceReport) -> list[str]:
    return [alarm.kind for alarm in found.alarms]


def test_the_right_people_score_1_without_alarm():
    found = made(person(0, 0) + person(1, 200))
    assert found.headline == 1 and kinds(found) == []
    assert [p.margin for p in found.people] == pytest.approx([FAR - NEAR] * 2)


def test_similarity_is_linear_between_the_calibrated_distances():
    found = made(person(0, 0, (SAME + OTHER) / 2) + person(1, 200, SAME / 2))
    assert [p.score for p in found.people] == pytest.approx([0.5, 1.0])


def test_who_is_missing_scores_0():
    found = made(person(0, 0))
    assert [p.score for p in found.people] == [1, 0] and found.headline == 0.5
    assert found.people[1].missing == 1 and kinds(found) == ["missing"]


def test_a_clip_without_faces_shows_nobody():
    faces = Faces(*(torch.zeros(0, *s) for s in ((), (4,), ())), torch.zeros(0, 3, 150, 150, dtype=torch.uint8))
    faces = Faces(faces.frame.long(), faces.box, faces.confidence, faces.chips)
    people = made(person(0, 0) + person(1, 200)).references
    none = torch.zeros(0, dtype=torch.bool)
    found = summarise(faces, none, torch.zeros(0, 2), torch.zeros(0).long(), People(people, torch.eye(2)), FRAMES, FPS)
    assert found.headline == 0 and [p.missing for p in found.people] == [1, 1]


def test_swapped_people_score_0_from_the_swap_on():
    half = FRAMES // 2
    first, second = range(half), range(half, FRAMES)
    found = made(
        person(0, 0, frames=first)
        + person(1, 200, frames=first)
        + person(1, 0, frames=second)
        + person(0, 200, frames=second)
    )
    assert found.headline == 0.5 and found.swaps == ((half, 0, 1), (half, 1, 0))
    assert [p.swapped for p in found.people] == [0.5, 0.5] and set(kinds(found)) == {"swap"}


def test_people_who_cross_are_not_swapped():
    """Each face moves steadily: places overlap more with its own last one than with the other's."""
    one = [Face(t, 20.0 * t, (SAME, FAR), 0) for t in range(FRAMES)]
    two = [Face(t, 20.0 * (FRAMES - t), (FAR, SAME), 1) for t in range(FRAMES) if t not in (5, 6, 7)]
    assert made(one + two).swaps == ()


def test_a_stranger_is_an_alarm_and_takes_nothing_from_the_score():
    found = made(person(0, 0) + person(1, 200) + stranger(400))
    assert found.headline == 1 and found.strangers == 1 and kinds(found) == ["stranger"]


def test_a_stranger_of_a_moment_is_noise():
    found = made(person(0, 0) + person(1, 200) + stranger(400, range(2)))
    assert found.strangers == 0


def test_a_person_replaced_by_a_stranger_is_missing():
    found = made(person(0, 0) + person(1, 200, frames=range(6)) + stranger(200, range(6, FRAMES)))
    assert found.people[1].score == 0.5 and kinds(found) == ["missing", "stranger"]


def test_a_second_face_of_a_person_is_a_duplicate():
    double = [Face(t, 400, (SAME, FAR), NOBODY) for t in range(FRAMES)]
    found = made(person(0, 0) + person(1, 200) + double)
    assert [p.duplicated for p in found.people] == [1, 0] and kinds(found) == ["duplicate"]


def test_drift_is_the_change_from_the_first_frame_to_the_last():
    steps = np.linspace(SAME, OTHER, FRAMES)
    moving = [Face(t, 200, (FAR, float(d)), 1) for t, d in enumerate(steps)]
    found = made(person(0, 0) + moving)
    assert found.people[1].drift == pytest.approx(-1, abs=1e-5) and found.people[0].drift == pytest.approx(0, abs=1e-5)
    assert kinds(found) == ["drift"]


def test_the_worst_second_is_the_lowest_mean_of_a_second():
    found = made(person(0, 0, frames=[t for t in range(FRAMES) if t not in (4, 5, 6)]) + person(1, 200))
    assert found.people[0].worst_second == pytest.approx(1 / 4)


def test_pixels_of_the_reference_are_a_copy():
    """`seed` -100 is the picture of person 0."""
    found = made(person(0, 0, 0.1, seed=-100) + person(1, 200))
    assert [p.pasted for p in found.people] == [1, 0] and kinds(found) == ["copy"]


def test_small_faces_are_not_judged():
    found = made(person(0, 0) + [Face(t, 200, (FAR, SAME), NOBODY, size=JUDGEABLE - 4) for t in range(FRAMES)])
    assert found.people[1].unjudged and found.people[1].judged == 0 and found.people[1].size == JUDGEABLE - 4
    assert found.headline == 1 and found.judged == 0.5


def test_nobody_can_be_judged_in_a_clip_of_small_faces():
    found = made([Face(t, 0, (FAR, FAR), NOBODY, size=10) for t in range(FRAMES)])
    assert found.headline is None and found.alarms == ()


def test_one_person_has_no_margin():
    found = made(person(0, 0, people=1), people=1)
    assert found.people[0].margin is None and found.headline == 1


def test_references_that_look_alike_are_named():
    assert made(person(0, 0) + person(1, 200), apart=OTHER - 0.1).alike == ((0, 1),)


def test_numbers_are_json_without_faces():
    found = made(person(0, 0) + stranger(200))
    numbers = json.loads(json.dumps(found.numbers(), allow_nan=False))
    assert numbers["headline"] == 0.5 and {a["kind"] for a in numbers["alarms"]} == {"missing", "stranger"}


def test_real_faces(portraits, scene):
    """Collins is replaced in the second of two frames."""
    right, wrong = (scene((name, 30, 40, 140), ("obama", 240, 40, 140)) for name in ("collins", "hopper"))
    people = find_people([portraits["collins"], portraits["obama"]])
    found = report(torch.from_numpy(np.stack([right, wrong])), people, 2.0)
    assert [p.score for p in found.people] == pytest.approx([0.5, 1.0], abs=0.02)
    assert min(p.margin for p in found.people) > 0.2


def test_a_blurred_face_is_not_judged(portraits, scene):
    """Neither is the person missing: the blurred face may be anybody's."""
    blurred = Image.fromarray(scene(("obama", 30, 40, 140))).filter(ImageFilter.GaussianBlur(2.2))
    found = report(torch.from_numpy(np.array(blurred))[None], [portraits["obama"]])
    assert found.headline is None and found.people[0].unjudged and found.people[0].size > JUDGEABLE


def test_a_reference_without_a_face_is_refused(portraits):
    with pytest.raises(UserError, match="reference image 2 shows no face"):
        find_people([portraits["obama"], np.full((64, 64, 3), 90, np.uint8)])


def test_a_reference_with_a_small_face_is_refused(scene):
    with pytest.raises(UserError, match="face of reference image 1 is .* pixels wide"):
        find_people([scene(("obama", 200, 100, 40))])


def test_a_report_of_nobody_or_nothing_is_refused(portraits):
    with pytest.raises(UserError, match="no reference image"):
        report(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), [])
    with pytest.raises(UserError, match="no frame"):
        report(torch.zeros(0, 32, 32, 3, dtype=torch.uint8), [portraits["obama"]])
