"""The oracle on videos whose failings are known, because they were rendered so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.tinyworld.making.distort import DISTORTIONS, distort
from trainers.tinyworld.oracle import OracleResult, measure
from trainers.tinyworld.people import sample_people
from trainers.tinyworld.render import motion, render, to_frames
from trainers.tinyworld.scenes import CROSS, JUMP, STAND, TURN, WAVE, SceneBatch, sample_scenes

SCENES = 12


def scenes_of(count: int = SCENES, counts: tuple[int, ...] = (2, 3), seed: int = 5) -> SceneBatch:
    return sample_scenes(count, torch.Generator().manual_seed(seed), counts)


def seen(scenes: SceneBatch, clips: Tensor) -> OracleResult:
    return measure(to_frames(clips), scenes)


def failing(scenes: SceneBatch, kind: str, severity: float = 1.0) -> OracleResult:
    generator = torch.Generator().manual_seed(1)
    n = len(scenes)
    altered, moves = distort(scenes, torch.full((n,), DISTORTIONS.index(kind)), torch.full((n,), severity), generator)
    return seen(scenes, render(scenes, altered, moves=moves))


def softened(clips: Tensor, sigma: float, noise: float) -> Tensor:
    x = torch.arange(-3, 4).float()
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    flat = clips.transpose(1, 2).reshape(-1, 1, *clips.shape[-2:])
    flat = F.conv2d(F.pad(flat, (3, 3, 3, 3), mode="replicate"), (kernel[:, None] * kernel).view(1, 1, 7, 7))
    soft = flat.view(clips.transpose(1, 2).shape).transpose(1, 2)
    return soft + noise * torch.randn(soft.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def scenes() -> SceneBatch:
    return scenes_of()


@pytest.fixture(scope="module")
def clean(scenes) -> OracleResult:
    return seen(scenes, render(scenes))


def test_a_clean_video_is_right_in_everything(clean):
    assert clean.identity.mean() > 0.95 and clean.identity.min() > 0.8
    assert clean.swapped.max() == 0 and clean.missing.max() == 0
    assert clean.count_right.min() == 1 and clean.action_right.mean() > 0.98


def test_identity_is_the_mean_over_people(scenes, clean):
    assert clean.per_person.shape == (SCENES, 3)
    assert (clean.per_person[~scenes.present()] == 0).all()
    assert torch.allclose(clean.identity, clean.per_person.sum(1) / scenes.count)


def test_alignment_is_the_mean_of_count_and_action(clean):
    assert torch.equal(clean.alignment, (clean.count_right + clean.action_right) / 2)


def test_blur_and_noise_cost_little(scenes):
    found = seen(scenes, softened(render(scenes), 0.8, 0.06))
    assert found.identity.mean() > 0.8 and found.identity.min() > 0.7
    assert found.swapped.mean() < 0.01 and found.missing.mean() < 0.01
    assert found.alignment.mean() > 0.97


def test_it_forgives_small_offsets(scenes):
    moved = F.pad(render(scenes), (2, 0, 1, 0, 0, 0), mode="replicate")[..., :48, :80]
    found = seen(scenes, moved)
    assert found.identity.mean() > 0.9
    assert found.alignment.mean() > 0.95


def test_the_same_numbers_alone_and_in_a_batch(scenes, clean):
    alone = seen(scenes[10:11], render(scenes[10:11]))
    assert torch.allclose(alone.identity, clean.identity[10:11], atol=1e-4)


def test_a_full_swap_counts_for_nothing():
    found = failing(scenes_of(counts=(2,)), "swap")
    assert found.identity.mean() < 0.05
    assert found.swapped.mean() > 0.95
    assert found.missing.mean() < 0.02


def test_a_swap_half_way_counts_for_half():
    found = failing(scenes_of(counts=(2,)), "swap", 0.5)
    assert found.identity.mean().item() == pytest.approx(0.45, abs=0.12)
    assert found.swapped.mean().item() == pytest.approx(5 / 9, abs=0.12)


def test_an_even_blend_is_in_the_middle_and_not_a_swap(scenes):
    found = failing(scenes, "blend")
    assert 0.35 < found.identity.mean() < 0.65
    assert found.swapped.mean() < 0.05


def test_a_drift_is_in_between(scenes, clean):
    found = failing(scenes_of(counts=(2,)), "drift")
    assert 0.5 < found.identity.mean() < 0.85


def test_strangers_are_near_zero(scenes):
    others = sample_people(3 * SCENES, torch.Generator().manual_seed(77)).view(SCENES, 3, -1)
    found = seen(scenes, render(replace(scenes, people=others)))
    assert found.identity.mean() < 0.15
    assert found.count_right.mean() > 0.95


@pytest.mark.parametrize("count", [2, 3])
def test_a_missing_person_costs_his_share(count):
    found = failing(scenes_of(counts=(count,)), "missing")
    assert found.identity.mean().item() == pytest.approx((count - 1) / count, abs=0.1)
    assert found.missing.mean().item() == pytest.approx(1 / count, abs=0.05)
    assert found.count_right.mean().item() == pytest.approx((count - 1) / count, abs=0.05)


def test_an_empty_video_has_nobody(scenes):
    found = seen(scenes, torch.zeros(SCENES, 3, 9, 48, 80))
    assert found.identity.max() == 0 and found.missing.min() == 1
    assert found.count_right.max() == 0 and found.action_right.max() == 0


def test_one_person_too_many_spoils_the_count():
    two = replace(scenes_of(8, counts=(2,)), action=torch.full((8, 3), STAND))
    crowd = replace(two, count=torch.full((8,), 3))
    moves = motion(crowd)
    x = moves.x.clone()
    x[:, :2] = motion(two).x[:, :2]
    x[:, 2] = 5 / 6
    found = seen(two, render(crowd, moves=replace(moves, x=x)))
    assert found.count_right.mean() < 0.2
    assert found.identity.mean() > 0.9


@pytest.mark.parametrize("kind", ["swap", "blend", "drift", "lost attribute", "missing"])
def test_heavier_is_worse_and_both_are_worse_than_clean(kind, scenes, clean):
    light, heavy = (failing(scenes, kind, severity).identity.mean() for severity in (0.35, 1.0))
    assert clean.identity.mean() > light + 0.03
    assert light > heavy + 0.02


def test_pasted_portraits_keep_faces_and_fail_to_act(scenes):
    found = failing(scenes, "copy-paste")
    assert found.identity.mean() > 0.9
    moving = ((scenes.action != STAND) & scenes.present()).any(1)
    assert found.action_right[moving].mean() < 0.3


@pytest.mark.parametrize("shown", [STAND, WAVE, JUMP, TURN])
def test_only_the_action_asked_for_is_right(shown):
    scenes = scenes_of(4, counts=(2,))
    actions = torch.full((4, 3), shown)
    clips = render(replace(scenes, action=actions))
    for asked in (STAND, WAVE, JUMP, TURN):
        found = seen(replace(scenes, action=torch.full((4, 3), asked)), clips)
        assert (found.action_right.mean() > 0.9) == (shown == asked), asked
        assert found.identity.mean() > 0.9


def test_who_should_cross_but_stays_acts_wrongly_but_keeps_his_face():
    scenes = scenes_of(64)
    crossing = scenes[((scenes.action == CROSS) & scenes.present()).any(1)][:8]
    found = seen(crossing, render(replace(crossing, action=torch.full_like(crossing.action, STAND))))
    assert found.identity.mean() > 0.9 and found.swapped.mean() < 0.05
    assert found.action_right.mean() < 0.5


def test_a_swap_in_a_crossing_is_still_a_swap():
    scenes = scenes_of(64, counts=(2,))
    crossing = scenes[(scenes.action == CROSS)[:, 0]][:8]
    found = failing(crossing, "swap")
    assert found.identity.mean() < 0.1 and found.swapped.mean() > 0.9


def test_other_sizes_are_refused(scenes):
    with pytest.raises(ValueError, match="48, 80"):
        measure(torch.zeros(SCENES, 9, 64, 64, 3, dtype=torch.uint8), scenes)
    with pytest.raises(ValueError, match="one per scene"):
        measure(torch.zeros(1, 9, 48, 80, 3, dtype=torch.uint8), scenes)
