"""Pairs of rendered clips."""

from __future__ import annotations

import pytest
import torch

from trainers.preference.pairs import Pair
from trainers.rewards.geometry import frame_indices, seconds_per_step
from trainers.tinyworld.making.distort import DISTORTIONS, distort, looks
from trainers.tinyworld.making.preference_pairs import SEEN, PairStream, damage, held_out_pairs
from trainers.tinyworld.models import FPS, FRAMES
from trainers.tinyworld.render import Motion
from trainers.tinyworld.scenes import SceneBatch, sample_scenes


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return PairStream(48, seed=3).sample()


@pytest.fixture(scope="module")
def scenes() -> SceneBatch:
    return sample_scenes(64, torch.Generator().manual_seed(0))


def _damage(scenes: SceneBatch, kind: int, severity: float) -> torch.Tensor:
    n = len(scenes)
    kinds = torch.full((n,), kind)
    altered, moves = distort(scenes, kinds, torch.full((n,), severity), torch.Generator().manual_seed(1))
    moves = Motion(**{k: v[:, :, SEEN] for k, v in vars(moves).items()})
    return damage(scenes, altered[:, :, SEEN], moves, kinds == DISTORTIONS.index("copy-paste"))


def test_a_clean_clip_has_no_damage(scenes: SceneBatch) -> None:
    assert _damage(scenes, -1, 1.0).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["blend", "drift", "missing"])
def test_damage_grows_with_severity(scenes: SceneBatch, kind: str) -> None:
    light, heavy = (_damage(scenes, DISTORTIONS.index(kind), severity) for severity in (0.3, 0.9))
    assert (heavy >= light).all() and heavy.mean() > 1.5 * light.mean()


@pytest.mark.parametrize("kind", DISTORTIONS)
def test_every_failure_is_damage(scenes: SceneBatch, kind: str) -> None:
    severity = 0.6
    assert _damage(scenes, DISTORTIONS.index(kind), severity).mean() > 0.05


def test_people_who_stand_elsewhere_all_along_are_not_damaged(scenes: SceneBatch) -> None:
    """The reward reads no prompt, and cannot know who should stand where."""
    assert _damage(scenes, DISTORTIONS.index("swap"), 1.0).max() < 1e-6
    assert _damage(scenes, DISTORTIONS.index("swap"), 0.5).mean() > 0.1


def test_strangers_are_more_damage_than_any_of_the_people_mixed(scenes: SceneBatch) -> None:
    others = looks(sample_scenes(64, torch.Generator().manual_seed(9)), len(SEEN))
    _, moves = distort(scenes, torch.full((64,), -1), torch.ones(64), torch.Generator().manual_seed(1))
    moves = Motion(**{k: v[:, :, SEEN] for k, v in vars(moves).items()})
    strangers = damage(scenes, others, moves, torch.zeros(64, dtype=torch.bool))
    assert strangers.mean() > 0.4 > _damage(scenes, DISTORTIONS.index("blend"), 0.9).mean()


def test_the_stream_is_a_function_of_its_seed(pairs: list[Pair]) -> None:
    again, other = PairStream(48, seed=3).sample(), PairStream(48, seed=4).sample()
    assert all(torch.equal(a.video_a, b.video_a) and a.label == b.label for a, b in zip(pairs, again, strict=True))
    assert not any(torch.equal(a.references[0], b.references[0]) for a, b in zip(pairs, other, strict=True))


def test_the_next_batch_has_new_pairs() -> None:
    stream = iter(PairStream(2, seed=3))
    assert not torch.equal(next(stream)[0].video_a, next(stream)[0].video_a)


def test_neither_side_wins_by_its_place(pairs: list[Pair]) -> None:
    labels = [p.label for batch in (pairs, PairStream(150, seed=5).sample()) for p in batch]
    assert abs(labels.count(1) - labels.count(-1)) < 0.2 * len(labels)
    assert 0.1 * len(labels) < labels.count(0) < 0.45 * len(labels)


def test_clean_against_clean_is_a_tie_of_different_clips(pairs: list[Pair]) -> None:
    clean = [p for p in pairs if p.kind == "clean / clean"]
    assert clean and all(p.label == 0 for p in clean)
    assert not any(torch.equal(p.video_a, p.video_b) for p in clean)


def test_every_person_has_one_portrait(pairs: list[Pair]) -> None:
    assert {len(p.references) for p in pairs} == {2, 3}
    assert all(r.shape == (84, 84, 3) and r.dtype == torch.uint8 for p in pairs for r in p.references)


def test_a_clip_of_seen_frames_stands_for_the_whole_one(pairs: list[Pair]) -> None:
    """Four frames at a lower rate give the reward the same frames at the same times as the nine."""
    assert len(pairs[0].video_a) == len(SEEN) and frame_indices(FRAMES) == SEEN
    assert seconds_per_step(len(SEEN), pairs[0].fps) == pytest.approx(seconds_per_step(FRAMES, FPS), rel=1e-12)


def test_easy_pairs_are_clean_against_strangers() -> None:
    stream = PairStream(24, seed=1, easy=1.0)
    assert all(p.kind == "clean / strangers" and p.label != 0 for p in stream.sample())
    stream.easy = 0.0
    assert sum(p.kind == "clean / strangers" for p in stream.sample()) < 12


def test_held_out_pairs_are_not_those_of_training(pairs: list[Pair]) -> None:
    held_out = held_out_pairs(2)
    assert len(held_out) == 2
    assert not any(torch.equal(h.references[0], p.references[0]) for h in held_out for p in pairs)
