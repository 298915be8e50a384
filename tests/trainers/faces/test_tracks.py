"""Faces are followed by place; identities of a track by runs that last."""

from __future__ import annotations

import torch

from trainers.faces.detect import Faces
from trainers.faces.tracks import changes, follow, lasting_runs, strayed


def faces(*places: tuple[int, float]) -> Faces:
    """Boxes of 10 pixels at (frame, left)."""
    frame = torch.tensor([f for f, _ in places])
    box = torch.tensor([[x, 0.0, x + 10, 10] for _, x in places])
    return Faces(frame, box, torch.ones(len(places)), torch.zeros(len(places), 3, 150, 150, dtype=torch.uint8))


def test_faces_of_one_place_are_a_track():
    assert follow(faces((0, 0), (0, 50), (1, 52), (1, 2), (2, 4))) == [[0, 3, 4], [1, 2]]


def test_a_jump_ends_a_track():
    assert follow(faces((0, 0), (1, 100))) == [[0], [1]]


def test_a_track_survives_a_short_gap_only():
    assert follow(faces((0, 0), (3, 1), (7, 1))) == [[0, 1], [2]]


def test_two_tracks_do_not_share_a_face():
    assert follow(faces((0, 0), (0, 5), (1, 4))) == [[0], [1, 2]]


def test_short_runs_are_noise():
    assert lasting_runs([0, 0, 0, 1, 0, 0, 0, 0]) == [(0, 0, 3), (0, 4, 8)]
    assert changes([0, 0, 0, 1, 1, 0, 0, 0]) == []


def test_a_track_that_becomes_another_person_is_a_change():
    assert changes([0, 0, 0, -1, -1, -1, 1, 1, 1]) == [(6, 0, 1)]


def test_frames_of_another_person_are_strayed_until_it_is_back():
    labels = [0, 0, 0, 1, 1, 1, -1, 0, 0, 0]
    assert strayed(labels).tolist() == [label == 1 for label in labels]


def test_a_moments_mistake_is_not_strayed():
    assert not strayed([0, 0, 0, 1, 0, 0, 0]).any()
