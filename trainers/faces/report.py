"""The face report: whether the people of a video are those of the reference images, for how long, and how sure.

A judge: it sees faces only, and no reward is trained on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .assign import NOBODY, assign
from .calibration import DUPLICATE, JUDGEABLE, OTHER, PASTED, STRANGER, SURE, likeness, similarity
from .detect import Faces, detect
from .embed import can_judge, embed
from .tracks import changes, follow, lasting_runs, strayed
from .users import BUILT_IN, Recogniser

JUDGED_SHARE = 0.5  # of the frames that must be judged before a person gets numbers
ALARM_SHARE = 0.15  # of the judged frames that a fault must last before it is an alarm
DRIFT_ALARM = -0.5  # change of likeness over the clip that is an alarm
PASTED_SHARE = 0.5  # of the seen frames that must copy the reference's pixels
MISSING, SEEN, SWAPPED, UNJUDGED = range(4)


@dataclass(frozen=True)
class People:
    """The faces of the reference images, one each."""

    faces: Faces
    embeddings: Tensor  # [people, 128]
    recogniser: Recogniser = BUILT_IN  # by which they were found and are compared


@dataclass(frozen=True)
class PersonReport:
    """One person over a clip. Numbers are None where too few frames can be judged, and where they have no meaning."""

    judged: float  # share of the frames in which the person was seen, or was certainly not there
    size: float | None  # median side in pixels of the person's faces; of those that cannot be judged where no other is
    score: float | None  # mean over judged frames: similarity where seen; 0 where missing, swapped or a stranger
    similarity: float | None  # mean over the frames in which the person is seen
    margin: float | None  # median distance to the next person's reference less that to the own; None for one person
    worst_second: float | None  # least mean of a second's judged frames
    drift: float | None  # change of likeness over the clip, by least squares; negative: away from the reference
    seen: float | None  # shares of the judged frames:
    missing: float | None
    swapped: float | None
    duplicated: float | None  # with a second face of the person
    pasted: float | None  # share of the seen frames whose pixels copy the reference image

    @property
    def unjudged(self) -> bool:
        """Whether the person's faces are too small or blurred to judge in most frames."""
        return self.score is None


@dataclass(frozen=True)
class Alarm:
    """A fault of a clip. `kind`: swap, missing, duplicate, stranger, drift or copy."""

    kind: str
    text: str


@dataclass(frozen=True)
class FaceReport:
    """What `report` found. Frames count from 0; arrays are [people, frames]."""

    people: tuple[PersonReport, ...]
    swaps: tuple[tuple[int, int, int], ...]  # frame, person before, person after: one face became the other's
    strangers: float | None  # share of the judged frames with a face of nobody
    alike: tuple[tuple[int, int], ...]  # people whose reference images are nearer than different people are
    fps: float
    faces: Faces = field(repr=False)
    judgeable: Tensor = field(repr=False)  # bool [faces] large and sharp enough
    given: Tensor = field(repr=False)  # [faces] the person of each face, or NOBODY
    strange: Tensor = field(repr=False)  # bool [faces] of nobody, for longer than a moment
    states: np.ndarray = field(repr=False)  # MISSING, SEEN, SWAPPED or UNJUDGED
    values: np.ndarray = field(repr=False)  # similarity 0 to 1; 0 where MISSING or SWAPPED, NaN where UNJUDGED
    references: Faces = field(repr=False)

    @cached_property
    def headline(self) -> float | None:
        """The share of the clip in which the right people are seen, from 0 to 1, each moment counted by similarity.

        The mean of the people's scores. None when nobody can be judged.
        """
        scores = [person.score for person in self.people if person.score is not None]
        return sum(scores) / len(scores) if scores else None

    @property
    def judged(self) -> float:
        """Mean share of the frames in which a person could be judged."""
        return sum(person.judged for person in self.people) / len(self.people)

    def numbers(self) -> dict:
        """The report as JSON may hold it: numbers and alarms, no faces and no embeddings."""
        return {
            "headline": self.headline,
            "judged": self.judged,
            "fps": self.fps,
            "people": [asdict(person) for person in self.people],
            "swaps": [list(swap) for swap in self.swaps],
            "strangers": self.strangers,
            "alike": [list(pair) for pair in self.alike],
            "alarms": [asdict(alarm) for alarm in self.alarms],
        }

    @cached_property
    def alarms(self) -> tuple[Alarm, ...]:
        """The faults that last, swaps first."""
        found = [Alarm("swap", f"person {a + 1} becomes person {b + 1} in frame {frame}") for frame, a, b in self.swaps]
        for number, person in enumerate(self.people, 1):
            if _above(person.missing, ALARM_SHARE):
                found.append(
                    Alarm("missing", f"person {number} is missing in {person.missing:.0%} of the judged frames")
                )
            if _above(person.duplicated, ALARM_SHARE):
                share = f"{person.duplicated:.0%} of the judged frames"
                found.append(Alarm("duplicate", f"person {number} has a second face in {share}"))
            if person.drift is not None and person.drift < DRIFT_ALARM:
                found.append(Alarm("drift", f"person {number} drifts away from the reference image"))
            if _above(person.pasted, PASTED_SHARE):
                found.append(Alarm("copy", f"person {number} copies the pixels of the reference image"))
        if _above(self.strangers, ALARM_SHARE):
            found.append(Alarm("stranger", f"a stranger is in {self.strangers:.0%} of the judged frames"))
        return tuple(found)


def _above(value: float | None, limit: float) -> bool:
    return value is not None and value > limit


def find_people(
    references: Sequence[np.ndarray | Tensor],
    device: torch.device | str = "cpu",
    names: Sequence[str] = (),
    recogniser: Recogniser = BUILT_IN,
) -> People:
    """The largest face of each reference image (uint8 [H, W, 3]); `names`: what errors call them.

    `recogniser`: the user's own networks, with which videos are then searched and compared as well.

    Raises UserError for an image without a face, or with one too small to judge.
    """
    found = []
    names = names or [f"reference image {number}" for number in range(1, len(references) + 1)]
    for name, picture in zip(names, references, strict=True):
        faces = detect(torch.from_numpy(np.array(picture))[None], device, recogniser=recogniser)
        if not len(faces):
            raise UserError(f"{name} shows no face; give a picture of one person's face")
        largest = int(faces.size.argmax())
        if faces.size[largest] < JUDGEABLE:
            raise UserError(
                f"the face of {name} is {faces.size[largest]:.0f} pixels wide; at least {JUDGEABLE} "
                "are needed: give a larger picture"
            )
        face = _chosen(faces, torch.tensor([largest]))
        found.append(People(face, embed(face, recogniser.embedder), recogniser))
    if not found:
        raise UserError("no reference image is given; give one picture per person")
    return join_people(found)


def join_people(parts: Sequence[People]) -> People:
    """The people of several, in order."""
    names = ("frame", "box", "confidence", "chips")
    faces = Faces(*(torch.cat([getattr(part.faces, name) for part in parts]) for name in names))
    return People(faces, torch.cat([part.embeddings for part in parts]), parts[0].recogniser)


def report(
    video: Tensor,
    references: Sequence[np.ndarray | Tensor] | People,
    fps: float = 10.0,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda frames: None,
) -> FaceReport:
    """Who of the reference images is seen where in a video (uint8 [F, H, W, 3] of `fps` frames per second).

    `references`: a picture uint8 [H, W, 3] of each person, or `find_people` of them. `progress`: as `detect` calls it.
    Raises UserError for a video without frames, and as `find_people` does.
    """
    if not len(video):
        raise UserError("the video has no frame; give a clip")
    people = references if isinstance(references, People) else find_people(references, device)
    faces = detect(video, device, progress, people.recogniser)
    distances = torch.full((len(faces), len(people.embeddings)), float("inf"))
    judgeable = can_judge(faces)
    embeddings = embed(_chosen(faces, judgeable.nonzero()[:, 0]), people.recogniser.embedder)
    distances[judgeable] = torch.cdist(embeddings, people.embeddings)
    given = torch.full((len(faces),), NOBODY)
    rows = judgeable.nonzero()[:, 0]
    for frame in faces.frame[rows].unique().tolist():
        here = faces.frame[rows] == frame
        given[rows[here]] = assign(embeddings[here], people.embeddings)
    return summarise(faces, judgeable, distances, given, people, len(video), fps)


def summarise(
    faces: Faces, judgeable: Tensor, distances: Tensor, given: Tensor, people: People, frames: int, fps: float
) -> FaceReport:
    count = len(people.embeddings)
    nearest = distances.min(1)
    swapped, strange, second = (torch.zeros(len(faces), dtype=torch.bool) for _ in range(3))
    swaps = []
    for track in follow(faces):
        track = torch.tensor([face for face in track if judgeable[face]], dtype=torch.int64)
        labels = given[track].tolist()
        swaps += [(int(faces.frame[track[at]]), before, after) for at, before, after in changes(labels)]
        swapped[track] = strayed(labels)
        for label, start, end in lasting_runs(labels):
            if label == NOBODY:
                run = track[start:end]
                strange[run] = (nearest.values[run] > STRANGER) & (faces.confidence[run] > SURE)
                second[run] = nearest.values[run] < DUPLICATE

    states = np.full((count, frames), MISSING)
    own, other, sizes, pasted = (np.full((count, frames), np.nan) for _ in range(4))
    # A person who is not recognised in a frame may be its small or blurred face.
    states[:, faces.frame[~judgeable].numpy()] = UNJUDGED
    copies = _correlation(faces, people, given)
    for face in (given != NOBODY).nonzero()[:, 0].tolist():
        person, frame = int(given[face]), int(faces.frame[face])
        states[person, frame] = SWAPPED if swapped[face] else SEEN
        own[person, frame], sizes[person, frame] = distances[face, person], faces.size[face]
        rest = torch.cat([distances[face, :person], distances[face, person + 1 :]])
        other[person, frame] = rest.min() if len(rest) else np.nan
        pasted[person, frame] = copies[face] > PASTED
    values = np.where(states == SEEN, np.nan_to_num(similarity(torch.tensor(own)).numpy()), 0.0)
    values[states == UNJUDGED] = np.nan
    unclear = float(faces.size[~judgeable].median()) if (~judgeable).any() else None
    judged_frames = (states != UNJUDGED).any(0)
    found = []
    for p in range(count):
        doubled = _frames_with(faces, second & (nearest.indices == p), frames)
        rows = (states[p], values[p], own[p], other[p] - own[p], sizes[p], pasted[p], doubled)
        found.append(_person(*rows, unclear, fps))
    strangers = _share(_frames_with(faces, strange, frames), judged_frames)
    apart = torch.cdist(people.embeddings, people.embeddings)
    alike = tuple((i, j) for i in range(count) for j in range(i + 1, count) if apart[i, j] < OTHER)
    return FaceReport(
        tuple(found),
        tuple(sorted(swaps)),
        strangers,
        alike,
        fps,
        faces,
        judgeable,
        given,
        strange,
        states,
        values,
        people.faces,
    )


def _person(states, values, own, margins, sizes, pasted, doubled, unclear, fps) -> PersonReport:
    """From one person's rows of the arrays of `summarise`, each [frames]."""
    judged, seen = states != UNJUDGED, states == SEEN
    size = float(np.nanmedian(sizes)) if (~np.isnan(sizes)).any() else unclear
    if judged.mean() < JUDGED_SHARE:
        return PersonReport(float(judged.mean()), size, *[None] * 10)
    apart = margins[seen & ~np.isnan(margins)]
    return PersonReport(
        judged=float(judged.mean()),
        size=size,
        score=float(values[judged].mean()),
        similarity=float(values[seen].mean()) if seen.any() else None,
        margin=float(np.median(apart)) if len(apart) else None,
        worst_second=_worst_second(values, judged, fps),
        drift=_drift(own, seen),
        seen=_share(seen, judged),
        missing=_share(states == MISSING, judged),
        swapped=_share(states == SWAPPED, judged),
        duplicated=_share(doubled, judged),
        pasted=float(pasted[seen].mean()) if seen.any() else None,
    )


def _share(what: np.ndarray, judged: np.ndarray) -> float | None:
    return float((what & judged).sum() / judged.sum()) if judged.any() else None


def _worst_second(values: np.ndarray, judged: np.ndarray, fps: float) -> float:
    """The least mean over the judged frames of a second; a second counts when half of its frames are judged."""
    length = min(len(values), max(1, round(fps)))
    windows = [slice(start, start + length) for start in range(len(values) - length + 1)]
    means = [np.nanmean(values[w]) for w in windows if judged[w].mean() >= 0.5]
    return float(min(means)) if means else float(np.nanmean(values))


def _drift(own: np.ndarray, seen: np.ndarray) -> float | None:
    """Change of likeness from the first frame to the last, by a line through the frames that show the person."""
    (times,) = seen.nonzero()
    if len(times) < 5 or times[-1] - times[0] < len(own) / 2:
        return None
    slope = np.polyfit(times, likeness(torch.tensor(own[seen])).numpy(), 1)[0]
    return float(slope * (len(own) - 1))


def _frames_with(faces: Faces, which: Tensor, frames: int) -> np.ndarray:
    found = np.zeros(frames, bool)
    found[faces.frame[which].numpy()] = True
    return found


def _chosen(faces: Faces, rows: Tensor) -> Faces:
    there = rows.to(faces.chips.device)
    crops = None if faces.crops is None else faces.crops[there]
    return Faces(faces.frame[rows], faces.box[rows], faces.confidence[rows], faces.chips[there], crops)


def _correlation(faces: Faces, people: People, given: Tensor) -> Tensor:
    """[faces] correlation of each given face's pixels with its person's reference image, both upright and coarse."""
    found = torch.zeros(len(faces))
    rows = (given != NOBODY).nonzero()[:, 0]
    if len(rows):
        ours, theirs = (_coarse(chips) for chips in (faces.chips[rows.to(faces.chips.device)], people.faces.chips))
        found[rows] = (ours * theirs[given[rows]]).sum(1)
    return found


def _coarse(chips: Tensor) -> Tensor:
    """Chips as grey pictures of 15x15 of the face's middle, of mean 0 and norm 1: float32 [n, 225] on the CPU."""
    grey = chips.float().mean(1)[:, 30:135, 22:127].cpu()
    flat = torch.nn.functional.avg_pool2d(grey[:, None], 7).flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    return flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-6)
