"""The error rates of the evidence, on distances that are given."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.faces.making.photos import Photo, resized
from trainers.faces.making.separability import frame_of, pair_kinds, probes_of, rates, row


def photo(person: str, shot: str) -> Photo:
    return Photo(person, shot, np.full((80, 60, 3), 200, np.uint8), (20.0, 20.0, 40.0, 50.0))


def test_pairs_are_of_one_person_of_two_or_left_out():
    photos = [photo("a", "1"), photo("a", "2"), photo("party1 0", "party1"), photo("party2 0", "party2")]
    assert pair_kinds(photos).tolist() == [[-1, 1, 0, 0], [1, -1, 0, 0], [0, 0, -1, -1], [0, 0, -1, -1]]


def test_a_resized_photo_keeps_its_face_in_its_box():
    small = resized(photo("a", "1"), 12)
    assert small.size == pytest.approx(12, abs=0.3) and small.pixels.shape[1] == pytest.approx(30, abs=1)


def test_the_face_lies_in_the_middle_of_its_frame():
    frame, middle = frame_of(photo("a", "1"), 24, None)
    assert frame.shape == (272, 480, 3) and middle == (240, 136) and frame[136, 240].tolist() == [200, 200, 200]


def test_separate_distances_have_no_error():
    people, rng = ["a", "a", "b", "b"], np.random.default_rng(0)
    kinds = np.array([[-1, 1, 0, 0], [1, -1, 0, 0], [0, 0, -1, 1], [0, 0, 1, -1]])
    found = rates(np.where(kinds == 1, 0.3, 0.8), kinds, people, rng)
    assert found["eer"] == found["miss"] == found["alarm"] == 0


def test_rates_are_means_over_people():
    """One of two people is never recognised: half of the people, whatever the number of pairs."""
    people, rng = ["a", "a", "a", "b", "b"], np.random.default_rng(0)
    kinds = np.zeros((5, 5), int)
    kinds[:3, :3] = kinds[3:, 3:] = 1
    np.fill_diagonal(kinds, -1)
    distances = np.full((5, 5), 0.8)
    distances[:3, :3] = 0.3
    assert rates(distances, kinds, people, rng)["miss"] == 0.5


def test_at_most_five_photos_of_a_person_are_probes():
    assert probes_of(["a"] * 12 + ["b"] + ["c"] * 2) == [0, 3, 6, 9, 13, 14]


def test_a_row_counts_the_errors_of_the_judged_only():
    """Of person a one of two probes is not recognised, and it is not clear enough to be judged."""
    people, rng = ["a", "a", "b"], np.random.default_rng(0)
    kinds = np.array([[-1, 1, 0], [1, -1, 0], [0, 0, -1]])
    distances = np.array([[0.0, 0.9, 0.8], [0.3, 0.0, 0.8], [0.8, 0.8, 0.0]])
    found, judged, *_, missed, taken = row(distances, kinds, people, np.array([1, 0, np.nan]), rng)
    assert (found, judged, missed, taken) == ("67%", "50%", "0.0%", "0.0%")
