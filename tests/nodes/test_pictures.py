"""IMAGE and MASK tensors in the shapes that other nodes give them."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch

GREY = torch.tensor([[0.0, 0.2], [0.6, 1.0]])


@pytest.fixture(scope="module")
def pictures(pack):
    return import_module("identity_grpo.nodes.pictures")


@pytest.mark.parametrize(
    "image",
    [GREY, GREY[None], GREY[None, ..., None], GREY[None, ..., None].expand(1, 2, 2, 3), GREY[None, ..., None].half()],
    ids=["[H, W]", "[N, H, W]", "one channel", "RGB", "float16"],
)
def test_grey_in_any_shape_becomes_the_same_rgb(pictures, image):
    assert pictures.to_pixels(image).tolist() == [[[[v] * 3 for v in row] for row in [[0, 51], [153, 255]]]]


def test_one_picture_without_a_batch_is_a_batch_of_one(pictures):
    assert pictures.to_pixels(torch.ones(5, 7, 3)).shape == (1, 5, 7, 3)


def test_transparency_becomes_white(pictures):
    red = torch.tensor([1.0, 0.0, 0.0])
    image = torch.stack([torch.cat([red, torch.tensor([alpha])]) for alpha in (0.0, 0.5, 1.0)])[None, None]
    assert pictures.to_pixels(image).tolist() == [[[[255, 255, 255], [255, 128, 128], [255, 0, 0]]]]


def test_values_beyond_the_range_are_clamped(pictures):
    assert pictures.to_pixels(torch.tensor([[[[-0.5, 0.5, 1.5]]]])).tolist() == [[[[0, 128, 255]]]]


@pytest.mark.parametrize("shape", [(5, 8, 8, 2), (5, 8, 8, 0), (5, 8, 8, 7), (1, 5, 8, 8, 3), (8,), (1, 0, 8, 3)])
def test_a_shape_that_is_no_image_is_refused_with_the_name_of_the_input(pictures, shape):
    with pytest.raises(pictures.UserError, match=r"`video_a` has the shape .* an IMAGE is \[frames"):
        pictures.to_pixels(torch.zeros(shape), "video_a")


def test_integers_are_refused(pictures):
    with pytest.raises(pictures.UserError, match="`images` holds torch.uint8 numbers"):
        pictures.to_pixels(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "images")


@pytest.mark.parametrize(("value", "name"), [(float("nan"), "NaN"), (float("inf"), "infinity"), (-float("inf"), "inf")])
@pytest.mark.parametrize("read", ["to_pixels", "opaque", "to_masks"])
def test_numbers_that_are_not_finite_are_refused(pictures, read, value, name):
    image = torch.zeros(2, 8, 8) if read == "to_masks" else torch.zeros(2, 8, 8, 3)
    image[1, 3, 4] = value
    with pytest.raises(pictures.UserError, match=rf"`images` holds numbers that are not finite \({name}"):
        getattr(pictures, read)(image, "images")


@pytest.mark.parametrize("given, said", [(None, "nothing"), ([GREY], "list"), (GREY.numpy(), "ndarray")])
def test_what_is_no_tensor_is_refused_with_the_name_of_the_input(pictures, pack, given, said):
    """A switch that is off gives None, an optional output too."""
    for read in (pictures.opaque, pictures.to_masks):
        with pytest.raises(pack.UserError, match=f"`video_b` got {said} in place of pictures"):
            read(given, "video_b")


def test_a_reference_that_is_not_finite_is_named_by_its_slot(pictures):
    with pytest.raises(pictures.UserError, match=r"`references.ref1` holds .* \(NaN\)"):
        pictures.to_references({"ref0": torch.zeros(1, 8, 8, 3), "ref1": torch.full((1, 8, 8, 3), float("nan"))})


def test_every_picture_of_every_slot_is_a_person_in_order(pictures):
    shades = [torch.full((count, 2, 2, 3), shade / 255) for count, shade in ((1, 10), (2, 20), (1, 30))]
    found = pictures.to_references({"ref0": shades[0], "ref1": None, "ref2": shades[1], "ref3": shades[2][..., :1]})
    assert [int(picture[0, 0, 0]) for picture in found] == [10, 20, 20, 30]
    assert all(picture.shape == (2, 2, 3) and picture.dtype == np.uint8 for picture in found)


def test_a_person_is_named_by_the_slot_and_by_the_place_in_its_batch(pictures):
    found = pictures.named_references({"ref0": torch.zeros(1, 2, 2, 3), "ref2": torch.zeros(2, 2, 2, 3)})
    assert list(found) == ["`references.ref0`", "picture 1 of `references.ref2`", "picture 2 of `references.ref2`"]


def test_a_video_in_place_of_a_picture_is_too_many_people(pictures):
    slots = {"ref0": torch.zeros(1, 2, 2, 3), "ref1": torch.zeros(81, 2, 2, 3)}
    with pytest.raises(pictures.UserError, match="`references` holds 82 pictures and takes at most 8"):
        pictures.to_references(slots)


@pytest.mark.parametrize(
    ("shape", "count"),
    [((4, 6), 1), ((5, 4, 6), 5), ((1, 1, 4, 6), 1), ((5, 4, 6, 1), 5), ((1, 5, 4, 6), 5), ((5, 1, 4, 6), 5)],
)
def test_masks_of_any_shape_become_a_stack(pictures, shape, count):
    values = torch.linspace(0, 1, count * 24)
    assert torch.equal(pictures.to_masks(values.reshape(shape)), values.reshape(count, 4, 6))


@pytest.mark.parametrize("shape", [(6,), (5, 3, 4, 6), (2, 5, 4, 6), (0, 4, 6)])
def test_a_shape_that_is_no_mask_is_refused_with_the_name_of_the_input(pictures, shape):
    with pytest.raises(pictures.UserError, match=r"`control_mask` has the shape .* a MASK is"):
        pictures.to_masks(torch.zeros(shape), "control_mask")
