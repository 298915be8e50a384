from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trainers.tinyworld.people import ATTRIBUTES, appearance, sample_people
from trainers.tinyworld.render import motion, render, render_portraits, to_frames
from trainers.tinyworld.scenes import CROSS, JUMP, STAND, TURN, WAVE, SceneBatch, sample_scenes


def scenes(count: int, seed: int = 0, counts: tuple[int, ...] = (2, 3)) -> SceneBatch:
    return sample_scenes(count, torch.Generator().manual_seed(seed), counts)


def acting(action: int, count: int = 2) -> SceneBatch:
    """A scene in which everybody does the same, without jitter."""
    scene = scenes(1, counts=(count,))
    return replace(scene, action=torch.full((1, 3), action), jitter=torch.zeros(1, 3, 3))


def test_clips_have_the_stated_shape_and_range():
    clips = render(scenes(3))
    assert clips.shape == (3, 3, 9, 48, 80)
    assert clips.dtype == torch.float32
    assert clips.abs().max() <= 1


def test_the_same_scenes_give_the_same_pixels_in_any_batch():
    five = scenes(5)
    together = render(five)
    assert torch.equal(together, render(five))
    assert torch.allclose(together[3:4], render(five[3:4]), atol=1e-6)


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_every_attribute_shows_in_clip_and_portrait(name):
    drawn = replace(acting(STAND), people=torch.ones(1, 3, len(ATTRIBUTES), dtype=torch.long))
    people = drawn.people.clone()
    people[0, 0, list(ATTRIBUTES).index(name)] = 0
    apart = (to_frames(render(drawn)).int() - to_frames(render(replace(drawn, people=people))).int()).abs()
    # More than a few pixels of every frame change, and they change clearly.
    assert ((apart.amax(-1) > 25).sum((2, 3)) >= 4).all()
    portraits = render_portraits(appearance(torch.stack([drawn.people[0, 0], people[0, 0]])))
    assert ((portraits[0] - portraits[1]).abs().amax(0) > 0.2).sum() > 20


def test_portraits_fill_most_of_a_white_square():
    portraits = render_portraits(appearance(sample_people(20, torch.Generator().manual_seed(0))), 84)
    assert portraits.shape == (20, 3, 84, 84)
    assert torch.allclose(portraits[:, :, 0, 0], torch.ones(20, 3), atol=1e-3)
    drawn = (portraits < 0.9).any(1)
    assert (drawn.any(2).float().mean(1) > 0.7).all()
    assert (drawn.any(1).float().mean(1) > 0.6).all()


def test_absent_people_leave_no_trace():
    two = scenes(4, counts=(2,))
    changed = two.people.clone()
    changed[:, 2] = (changed[:, 2] + 1) % 3
    assert torch.equal(render(two), render(replace(two, people=changed)))


def test_the_nearer_of_two_who_meet_hides_the_other():
    scene = acting(CROSS)
    people = scene.people.clone()
    people[0, :2, 7] = torch.tensor([0, 1])  # red and blue shirts
    people[0, :, 8] = 0
    for depth, channel in ((torch.tensor([[0.9, 0.1, 0.0]]), 0), (torch.tensor([[0.1, 0.9, 0.0]]), 2)):
        middle = render(replace(scene, people=people, depth=depth))[0, :, 4]
        assert middle[:, 43, 40].argmax() == channel


def test_actions_move_what_they_name():
    stand, wave, jump, turn, cross = (motion(acting(a)) for a in (STAND, WAVE, JUMP, TURN, CROSS))
    for name in ("x", "y", "turn", "hand"):
        assert torch.equal(getattr(stand, name)[0, :2], getattr(stand, name)[0, :2, :1].expand(-1, 9))
    assert (wave.hand[0, :2] == 1).all() and wave.swing[0, 0].std() > 0.3
    assert (jump.y[0, 0].max() - jump.y[0, 0].min()) * 48 > 5
    assert turn.turn[0, 0].max() > 0.9 and turn.turn[0, 0].min() < -0.9
    assert torch.allclose(cross.x[0, 0, -1], cross.x[0, 1, 0]) and torch.allclose(cross.x[0, 1, -1], cross.x[0, 0, 0])


def test_looks_may_change_from_frame_to_frame():
    scene = acting(STAND)
    looks = appearance(scene.people).unsqueeze(2).repeat(1, 1, 9, 1)
    looks[0, 0, 5:] = looks[0, 1, 5:]
    changed, clean = render(scene, looks), render(scene)
    assert torch.equal(changed[:, :, :5], clean[:, :, :5])
    assert not torch.allclose(changed[:, :, 5:], clean[:, :, 5:], atol=0.1)


def test_a_mixture_of_looks_lies_between_the_pictures():
    looks = appearance(sample_people(2, torch.Generator().manual_seed(4)))
    a, b, half = render_portraits(torch.stack([looks[0], looks[1], looks.mean(0)]))
    assert (half - a).abs().mean() < (b - a).abs().mean()
    assert (half - b).abs().mean() < (b - a).abs().mean()


def test_a_larger_picture_shows_the_same():
    scene = scenes(2)
    small = render(scene, frames=3)
    large = render(scene, frames=3, height=96, width=160)
    shrunk = torch.nn.functional.avg_pool2d(large.transpose(1, 2).flatten(0, 1), 2).unflatten(0, (2, 3)).transpose(1, 2)
    assert (shrunk - small).abs().mean() < 0.03


def test_frames_are_rounded_and_clamped():
    frames = to_frames(torch.tensor([-1.2, -1.0, 0.0, 1.0, 1.1]).view(1, 1, 5, 1, 1).expand(1, 3, 5, 2, 2))
    assert frames.shape == (1, 5, 2, 2, 3)
    assert frames[0, :, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]
