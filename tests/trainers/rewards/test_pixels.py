"""From pictures to patch rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import autocast

from trainers.errors import UserError
from trainers.rewards.pixels import MEAN, STD, clip_rows, image_rows, patch_rows, reference_pixels, resize


def test_a_strip_is_refused_with_its_name(tmp_path: Path) -> None:
    Image.new("RGB", (900, 3)).save(tmp_path / "strip.png")
    with pytest.raises(UserError, match="strip.png.*too narrow"):
        reference_pixels(tmp_path / "strip.png")


def test_files_arrays_images_and_tensors_read_alike(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), pixels, Image.fromarray(pixels), torch.from_numpy(pixels)]
    first, *others = [reference_pixels(form) for form in forms]
    assert first.shape == (56, 84, 3) or first.shape == (84, 84, 3)
    assert all(torch.equal(first, other) for other in others)


def test_rows_go_by_time_then_blocks_of_two_by_two() -> None:
    """Each pixel holds the number of its place; the rows must hold the numbers in the documented order."""
    frames, height, width = 4, 56, 84
    place = torch.arange(frames * 3 * height * width, dtype=torch.float64).view(1, frames, 3, height, width)
    rows, grid = patch_rows(place)
    assert grid == (2, 4, 6)
    row = 0
    for t in range(2):
        for block_y in range(2):
            for block_x in range(3):
                for y in (2 * block_y, 2 * block_y + 1):
                    for x in (2 * block_x, 2 * block_x + 1):
                        patch = place[0, 2 * t : 2 * t + 2, :, 14 * y : 14 * y + 14, 14 * x : 14 * x + 14]
                        assert torch.equal(rows[row], patch.transpose(0, 1).flatten())
                        row += 1
    assert row == len(rows)


def test_an_image_fills_both_times_of_its_patches() -> None:
    image = torch.randint(0, 256, (56, 56, 3), dtype=torch.uint8)
    rows, grids = image_rows([image])
    assert grids == [(1, 4, 4)]
    first, second = rows.view(-1, 3, 2, 196).unbind(2)
    assert torch.equal(first, second)
    assert rows.view(-1, 3, 392)[0, 0, 0].item() == pytest.approx(
        (image[0, 0, 0].item() / 255 - MEAN[0]) / STD[0], abs=1e-6
    )


def test_clips_of_mixed_sizes_keep_their_order() -> None:
    clips = [torch.randint(0, 256, (4, h, w, 3), dtype=torch.uint8) for h, w in ((48, 80), (60, 40), (48, 80))]
    rows, grids = clip_rows(clips)
    start = 0
    for clip, grid in zip(clips, grids, strict=True):
        alone, (alone_grid,) = clip_rows([clip])
        assert grid == alone_grid
        assert torch.equal(rows[start : start + len(alone)], alone)
        start += len(alone)
    assert start == len(rows)


def test_resized_clips_hold_whole_grey_levels() -> None:
    clip = torch.randint(0, 256, (4, 48, 80, 3), dtype=torch.uint8)
    rows, _ = clip_rows([clip])
    levels = (
        rows.double().view(-1, 3, 392) * torch.tensor(STD).double().view(3, 1) + torch.tensor(MEAN).double().view(3, 1)
    ) * 255
    assert (levels - levels.round()).abs().max() < 1e-4
    assert levels.min() >= -1e-4 and levels.max() <= 255 + 1e-4


@pytest.mark.parametrize(
    ("before", "after"), [((48, 80), (252, 420)), ((240, 416), (252, 420)), ((480, 832), (476, 812))]
)
def test_the_resize_for_gpus_gives_the_same_grey_levels(before: tuple[int, int], after: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (2, 3, *before), generator=torch.Generator().manual_seed(0)).float()
    one, other = (resize(pixels, after, by_matrices=way).clamp(0, 255).round() for way in (True, False))
    assert (one - other).abs().max() <= 1
    assert (one != other).double().mean() < 1e-5


def test_mixed_precision_around_it_does_not_coarsen_the_resize() -> None:
    pixels = torch.randint(0, 256, (1, 3, 48, 80), generator=torch.Generator().manual_seed(0)).float()
    with autocast("cpu", torch.bfloat16):
        inside = resize(pixels, (252, 420), by_matrices=True)
    assert torch.equal(inside, resize(pixels, (252, 420), by_matrices=True))
