"""The assignment is the cheapest one of all, and nobody is a choice."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from trainers.faces.assign import NOBODY, assign
from trainers.faces.calibration import OTHER


def at(*positions: float) -> torch.Tensor:
    """Embeddings on a line."""
    return torch.tensor(positions, dtype=torch.float32)[:, None].expand(-1, 1)


def cost(given, frame, references) -> float:
    return sum(OTHER if p == NOBODY else abs(frame[f] - references[p]).item() for f, p in enumerate(given))


@pytest.mark.parametrize("seed", range(30))
def test_it_is_the_cheapest_of_all(seed):
    generator = torch.Generator().manual_seed(seed)
    faces, people = (int(torch.randint(1, 5, (), generator=generator)) for _ in range(2))
    frame, references = (torch.rand(n, 1, generator=generator) * 2 for n in (faces, people))
    choices = product([NOBODY, *range(people)], repeat=faces)
    allowed = [c for c in choices if len([p for p in c if p != NOBODY]) == len({p for p in c if p != NOBODY})]
    best = min(cost(c, frame, references) for c in allowed)
    given = assign(frame, references).tolist()
    assert tuple(given) in allowed and cost(given, frame, references) == pytest.approx(best, abs=1e-6)


def test_the_nearest_face_is_given_up_where_the_total_is_less():
    """Face 0 is nearest to person 0, but only it can be person 1."""
    assert assign(at(0.1, 0.15), at(0.12, -0.4)).tolist() == [1, 0]


def test_a_face_far_from_everybody_is_nobody():
    assert assign(at(5.0, 0.1), at(0.0, 1.0)).tolist() == [NOBODY, 0]


def test_one_person_is_given_once():
    assert sorted(assign(at(0.0, 0.01), at(0.0)).tolist()) == [NOBODY, 0]


def test_a_frame_without_faces():
    assert assign(torch.zeros(0, 1), at(0.0, 1.0)).tolist() == []
