"""Distorted clips of real faces: what is distorted, what is not, and what the label says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.cli import main
from trainers.errors import UserError
from trainers.pictures.clips import write_animation
from trainers.preference.distort import KINDS, Track, distort, distorted_pair, find_heads
from trainers.preference.folder import PairFolder

PICTURES = Path(__file__).parents[1] / "faces" / "pictures"


@pytest.fixture(scope="module")
def people() -> list[np.ndarray]:
    return [np.asarray(Image.open(PICTURES / f"{name}.jpg").convert("RGB")) for name in ("obama", "collins")]


@pytest.fixture(scope="module")
def clip(people) -> np.ndarray:
    """Two people side by side for three frames: uint8 [3, 240, 440, 3]."""
    frame = Image.new("RGB", (440, 240), (90, 120, 110))
    for number, person in enumerate(people):
        frame.paste(Image.fromarray(person), (10 + 220 * number, 20))
    return np.stack([np.roll(np.asarray(frame), 2 * number, 1) for number in range(3)])


@pytest.fixture(scope="module")
def tracks(clip, people) -> list[Track]:
    return find_heads(clip, people)


def box(track: Track, frame: int) -> tuple[slice, slice]:
    x0, y0, x1, y1 = track.boxes[frame].astype(int)
    return slice(y0, y1), slice(x0, x1)


def change(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).mean())


def test_heads_are_found_in_every_frame_and_move_with_it(tracks):
    assert [track.person for track in tracks] == [0, 1]
    assert tracks[0].boxes[:, 2].max() < tracks[1].boxes[:, 0].min() + 60
    assert 1 < (tracks[0].boxes[-1] - tracks[0].boxes[0])[2] < 10


@pytest.mark.parametrize("kind", KINDS)
def test_only_heads_change_and_by_the_severity(clip, tracks, kind):
    donor = None if kind == "drop" else tracks[1]
    mild, strong = (distort(clip, tracks[0], donor, kind, severity) for severity in (0.3, 1.0))
    clean = distort(clip, tracks[0], donor, kind, 0.0)
    place = box(tracks[0], 2)
    assert change(strong[2][place], clean[2][place]) > 10
    assert change(mild, clean) < change(strong, clean)
    outside = np.ones(clip.shape[1:3], bool)
    for x0, y0, x1, y1 in (track.boxes[2].astype(int) for track in tracks):
        outside[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2] = False
    assert (strong[2][outside] == clip[2][outside]).all()


def test_a_drift_begins_with_the_person_and_ends_with_the_other(clip, tracks):
    found = distort(clip, tracks[0], tracks[1], "drift", 1.0)
    changes = [change(found[n][box(tracks[0], n)], clip[n][box(tracks[0], n)]) for n in range(3)]
    assert changes[0] < 5 < changes[1] < changes[2]


def test_the_label_is_that_of_the_less_distorted_clip(clip, tracks):
    labels = set()
    for seed in range(20, 36):
        pair = distorted_pair(clip, tracks, np.random.default_rng(seed), "blend")
        labels.add(pair.label)
        damage = [change(video, clip) for video in (pair.video_a, pair.video_b)]
        if pair.label:
            assert (damage[0] < damage[1]) == (pair.label == 1), seed
    assert labels == {1, -1, 0}


def test_one_person_needs_a_stranger_for_a_swap(clip, tracks, people):
    with pytest.raises(UserError, match="needs a second person"):
        distorted_pair(clip, tracks[:1], np.random.default_rng(0), "swap")
    pair = distorted_pair(clip, tracks[:1], np.random.default_rng(0), "swap", strangers=[people[1]])
    assert pair.kind == "distorted: swap" or pair.label == 0


def test_a_clip_without_the_people_is_refused(clip):
    with pytest.raises(UserError, match="no person of the reference images"):
        distorted_pair(clip, [], np.random.default_rng(0))


def test_the_command_adds_automatic_pairs_with_their_verdicts(clip, tmp_path, capsys):
    write_animation(clip, tmp_path / "clip.webp", 8)
    references = [str(PICTURES / f"{name}.jpg") for name in ("obama", "collins")]
    line = ["reward", "distort", str(tmp_path / "pairs"), "--clips", str(tmp_path / "clip.webp"), "--each", "4"]
    assert main([*line, "--reference", *references]) == 0
    assert "4 pairs in" in capsys.readouterr().out
    records = PairFolder(tmp_path / "pairs").read()
    assert len(records.pairs) == 4 and all(pair.automatic for pair in records.pairs.values())
    assert {vote.who for vote in records.votes.values()} == {"distortion"} and len(records.votes) == 4
