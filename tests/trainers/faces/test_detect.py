"""Faces are found where they are, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainers.faces.detect import CANONICAL, Faces, _distinct, _similarity, detect, overlap, windows
from trainers.faces.embed import embed


@pytest.fixture(scope="module")
def found(scene) -> Faces:
    """Two faces, none, one small face."""
    frames = [scene(("collins", 30, 40, 150), ("obama", 240, 60, 100)), scene(), scene(("hopper", 200, 100, 70))]
    torch.set_num_threads(1)
    return detect(torch.from_numpy(np.stack(frames)))


def test_faces_are_found_in_their_frames(found):
    assert sorted(found.frame.tolist()) == [0, 0, 2] and found.confidence.min() > 0.5


def test_boxes_are_where_the_faces_were_pasted(found):
    boxes = sorted(box.tolist() for box in found.box[found.frame == 0])
    middles = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes]
    np.testing.assert_allclose(middles, [(105, 110), (291, 112)], atol=8)


def test_the_size_is_that_of_the_box(found):
    assert found.size[found.frame == 2].item() == pytest.approx(36, abs=6)


def test_chips_are_upright_whatever_the_size(found, scene, portraits):
    """The same portrait, large and turned by 20 degrees, is nearly the same chip."""
    from PIL import Image

    turned = Image.fromarray(portraits["collins"]).rotate(20, Image.Resampling.BICUBIC)
    one, two = (detect(torch.from_numpy(np.array(p))[None]) for p in (portraits["collins"], turned))
    assert (embed(one) - embed(two)).norm() < 0.3


def test_people_are_told_apart(found):
    distances = torch.cdist(embed(found), embed(found))
    assert (distances + 9 * torch.eye(3)).min() > 0.6


def test_detection_repeats(scene, found):
    again = detect(torch.from_numpy(scene(("collins", 30, 40, 150), ("obama", 240, 60, 100)))[None])
    assert torch.equal(again.chips, found.chips[found.frame == 0])


def test_a_clip_without_faces_has_empty_results():
    faces = detect(torch.full((1, 64, 96, 3), 127, dtype=torch.uint8))
    assert len(faces) == 0 and embed(faces).shape == (0, 128) and faces.size.shape == (0,)


def test_overlap_is_intersection_over_union():
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6]])
    torch.testing.assert_close(overlap(boxes[:1], boxes), torch.tensor([[1.0, 1 / 7, 0]]))


def test_of_overlapping_boxes_the_likeliest_stays():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 10, 10], [20, 20, 30, 30]])
    assert _distinct(boxes, torch.tensor([0.5, 0.9, 0.6])) == [1, 2]


def test_the_map_to_the_canonical_places_is_exact_for_a_similarity():
    """Canonical points, turned by 30 degrees, 40 times as large and moved."""
    angle = torch.tensor(torch.pi / 6)
    turn = 40 * torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    move = torch.tensor([7.0, -3.0])
    place = _similarity(torch.tensor(CANONICAL) @ turn.T + move, CANONICAL)
    torch.testing.assert_close(place, torch.cat([turn, move[:, None]], 1), atol=1e-4, rtol=0)


def test_a_small_frame_is_looked_at_as_a_whole():
    assert [window for window, _ in windows(240, 416)] == [(0, 0, 416, 240)] * 2


@pytest.mark.parametrize("height, width", [(480, 832), (832, 480), (720, 1280), (480, 2000)])
def test_a_large_frame_is_covered_by_squares_that_overlap(height, width):
    whole, *squares = (window for window, _ in windows(height, width))
    assert whole == (0, 0, width, height)
    side, axis = min(height, width), 0 if width > height else 1
    starts = [square[axis] for square in squares]
    assert all(square[2:] == (side, side) for square in squares) and starts[0] == 0
    assert starts[-1] == max(height, width) - side and np.diff(starts).max() <= 0.75 * side + 1


def test_a_small_face_of_a_large_frame_is_found_once(scene):
    """In the part that both squares of the frame see."""
    frame = np.full((480, 832, 3), 120, np.uint8)
    frame[100:340, 208:624] = scene(("obama", 180, 90, 60))
    faces = detect(torch.from_numpy(frame)[None])
    assert len(faces) == 1 and 22 < faces.size.item() < 42
