from __future__ import annotations

import pytest
import torch

from trainers.tinyworld.making.distort import DISTORTIONS, distort, looks, random_kinds
from trainers.tinyworld.render import motion
from trainers.tinyworld.scenes import JUMP, STAND, SceneBatch, sample_scenes


def scenes(count: int, counts: tuple[int, ...] = (2, 3)) -> SceneBatch:
    return sample_scenes(count, torch.Generator().manual_seed(3), counts)


def distorted(scene: SceneBatch, kind: str | None, severity: float, seed: int = 0):
    index = -1 if kind is None else DISTORTIONS.index(kind)
    generator = torch.Generator().manual_seed(seed)
    return distort(scene, torch.full((len(scene),), index), torch.full((len(scene),), severity), generator)


def test_no_distortion_leaves_everything():
    scene = scenes(8)
    altered, moves = distorted(scene, None, 1.0)
    assert torch.equal(altered, looks(scene))
    for name in ("x", "y", "turn", "hand", "visible"):
        assert torch.equal(getattr(moves, name), getattr(motion(scene), name))


def test_a_swap_exchanges_two_people_from_some_frame_on():
    scene = scenes(8, (2,))
    clean = looks(scene)
    altered, _ = distorted(scene, "swap", 1.0)
    assert torch.allclose(altered[:, :2], clean[:, [1, 0]], atol=1e-6)
    late, _ = distorted(scene, "swap", 0.5)
    assert torch.equal(late[:, :, :4], clean[:, :, :4])
    assert torch.allclose(late[:, :2, 4:], clean[:, [1, 0], 4:], atol=1e-6)


def test_a_blend_reaches_half_way():
    scene = scenes(8, (2,))
    clean = looks(scene)
    altered, _ = distorted(scene, "blend", 1.0)
    assert torch.allclose(altered[:, 0], (clean[:, 0] + clean[:, 1]) / 2, atol=1e-6)
    assert torch.allclose(altered[:, 0], altered[:, 1], atol=1e-6)


def test_a_drift_starts_clean_and_ends_as_one_stranger():
    scene = scenes(8)
    apart = (distorted(scene, "drift", 1.0)[0] - looks(scene)).abs().sum(-1)
    assert (apart[:, :, 0] == 0).all()
    assert ((apart[:, :, -1] > 0).sum(1) == 1).all()
    assert (apart.diff(dim=2) >= -1e-5).all()


def test_lost_attributes_change_one_person_all_along():
    scene = scenes(40)
    changed = distorted(scene, "lost attribute", 1.0)[0] != looks(scene)
    assert (changed.any(3).any(2).sum(1) <= 1).all()
    assert (changed.any(1).any(1).any(1)).float().mean() > 0.9
    assert torch.equal(changed[:, :, :1].expand_as(changed), changed)


def test_someone_goes_missing():
    scene = scenes(8)
    _, moves = distorted(scene, "missing", 1.0)
    assert torch.equal(moves.visible.sum(1), (scene.count - 1).float()[:, None].expand(-1, 9))
    _, late = distorted(scene, "missing", 0.5)
    assert torch.equal(late.visible[..., 0].sum(1), scene.count.float())
    assert torch.equal(late.visible[..., -1].sum(1), (scene.count - 1).float())


def test_pasted_people_do_not_move():
    scene = scenes(20)
    altered, moves = distorted(scene, "copy-paste", 1.0)
    assert torch.equal(altered, looks(scene))
    for name in ("x", "y", "turn", "hand"):
        value = getattr(moves, name)[scene.present()]
        assert torch.equal(value, value[:, :1].expand_as(value))
    assert (moves.turn[scene.present()] == 0).all()


def test_severity_orders_the_change():
    scene = scenes(32)
    for kind in ("swap", "blend", "drift", "lost attribute"):
        light, heavy = ((distorted(scene, kind, s)[0] - looks(scene)).abs().mean() for s in (0.3, 1.0))
        assert heavy > light * 1.2, kind


def test_kinds_mix_in_one_batch_without_touching_each_other():
    scene = scenes(3)
    kind = torch.tensor([-1, DISTORTIONS.index("missing"), DISTORTIONS.index("copy-paste")])
    altered, moves = distort(scene, kind, torch.ones(3), torch.Generator().manual_seed(0))
    assert torch.equal(altered, looks(scene))
    assert torch.equal(moves.visible[[0, 2]], motion(scene).visible[[0, 2]])
    assert torch.equal(moves.x[:2], motion(scene).x[:2])


def test_random_kinds_keep_their_shares():
    kinds = random_kinds(4000, {"swap": 0.25, "drift": 0.1}, torch.Generator().manual_seed(0))
    assert (kinds == DISTORTIONS.index("swap")).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (kinds == DISTORTIONS.index("drift")).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert set(kinds.tolist()) == {-1, DISTORTIONS.index("swap"), DISTORTIONS.index("drift")}


@pytest.mark.parametrize("shares", [{"swaps": 0.1}, {"swap": 0.6, "blend": 0.6}])
def test_impossible_shares_are_refused(shares):
    with pytest.raises(ValueError):
        random_kinds(4, shares, torch.Generator())


def test_a_pasted_jump_stays_on_the_ground():
    scene = scenes(64)
    _, moves = distorted(scene, "copy-paste", 0.5)
    jumping = (scene.action == JUMP) & scene.present()
    standing = (scene.action == STAND) & scene.present()
    assert jumping.any() and standing.any()
    assert moves.y[jumping].unique().numel() == 1
