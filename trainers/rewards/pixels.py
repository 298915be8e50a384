"""From frames and reference images to the patch rows that the vision tower reads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, autocast

from ..errors import UserError
from ..pictures.reading import Picture, read_picture
from .geometry import IMAGE_MIN_PIXELS, MAX_PIXELS, TEMPORAL_PATCH, VIDEO_MIN_PIXELS, resized

PATCH, MERGE = 14, 2
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's channel statistics, from Qwen2.5-VL's `preprocessor_config.json`."""

SMALL = 256
"""Height and width together below which a resize by matrices is the faster one on a CPU as well."""

Grid = tuple[int, int, int]
"""Patches along time, height and width."""


def reference_pixels(reference: Picture, maximum: int = MAX_PIXELS) -> Tensor:
    """The reference resized for the vision tower: uint8 [H, W, 3], sides multiples of 28 (PIL's bicubic).

    A uint8 tensor that has that size already is returned, on its device. Raises UserError for a picture that cannot
    be read or is too narrow.
    """
    if isinstance(reference, Tensor) and _fits(reference, maximum):
        return reference
    image = read_picture(reference)
    try:
        height, width = resized(image.height, image.width, IMAGE_MIN_PIXELS, maximum)
    except UserError as error:
        name = f" {reference}" if isinstance(reference, str | Path) else ""
        raise UserError(f"reference image{name}: {error} to the person") from None
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image))


def _fits(image: Tensor, maximum: int) -> bool:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != 3:
        return False
    return resized(*image.shape[:2], IMAGE_MIN_PIXELS, maximum) == tuple(image.shape[:2])


def resize(pixels: Tensor, size: tuple[int, int], by_matrices: bool) -> Tensor:
    """Bicubic with antialias: float32 [N, C, H, W] to [N, C, *size].

    As two products with torch's own weights (`by_matrices`) on a GPU, where torch's kernel for this walks through the
    batch serially, and for small pictures. The two differ by float rounding, by one grey level in about one value of
    ten million.
    """
    if not by_matrices:
        return F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
    rows, columns = (_weights(*lengths, pixels.device) for lengths in zip(pixels.shape[-2:], size, strict=True))
    with autocast(pixels.device.type, enabled=False):
        return rows @ (pixels @ columns.T)


@lru_cache(maxsize=64)
def _weights(before: int, after: int, device: torch.device) -> Tensor:
    """The resize along one axis as a matrix [after, before]: the resized identity."""
    identity = torch.eye(before)[None, None]
    return F.interpolate(identity, size=(after, before), mode="bicubic", antialias=True, align_corners=False)[0, 0].to(
        device
    )


def normalise(pixels: Tensor) -> Tensor:
    """Grey levels [..., 3, H, W] in 0..255, float32, in place, to the vision tower's normalisation."""
    mean, std = (torch.tensor(v, dtype=torch.float32, device=pixels.device).view(3, 1, 1) for v in (MEAN, STD))
    return pixels.div_(255).sub_(mean).div_(std)


def patch_rows(pixels: Tensor) -> tuple[Tensor, Grid]:
    """Patches of N clips [N, T, 3, H, W]: rows [N·t·h·w, 1176] and the grid (t, h, w) of each.

    Rows go by time, then by blocks of 2×2 patches, then inside the block; a row holds (channel, time 2, 14, 14).
    """
    n, frames, channels, height, width = pixels.shape
    grid = (frames // TEMPORAL_PATCH, height // PATCH, width // PATCH)
    blocks = pixels.reshape(
        n, grid[0], TEMPORAL_PATCH, channels, grid[1] // MERGE, MERGE, PATCH, grid[2] // MERGE, MERGE, PATCH
    )
    rows = blocks.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)
    return rows.reshape(-1, channels * TEMPORAL_PATCH * PATCH * PATCH), grid


def image_rows(images: Sequence[Tensor]) -> tuple[Tensor, list[Grid]]:
    """Rows of uint8 images [H, W, 3] with sides that are multiples of 28, one grid each.

    An image is both frames of its patches.
    """

    def prepare(stacked: Tensor) -> tuple[Tensor, Grid]:
        pixels = normalise(stacked.permute(0, 3, 1, 2).float().contiguous())
        return patch_rows(pixels.unsqueeze(1).expand(-1, TEMPORAL_PATCH, -1, -1, -1))

    return _by_shape(images, prepare)


def clip_rows(clips: Sequence[Tensor], maximum: int = MAX_PIXELS) -> tuple[Tensor, list[Grid]]:
    """Rows of the chosen frames of each clip, uint8 [F, H, W, 3] with F even; clips of one size are resized together.

    Bicubic with antialias in float32, clamped and rounded to grey levels, as the reference does on tensors.
    """

    def prepare(stacked: Tensor) -> tuple[Tensor, Grid]:
        n, frames, height, width, _ = stacked.shape
        flat = stacked.flatten(0, 1).permute(0, 3, 1, 2).float().contiguous()
        size = resized(height, width, VIDEO_MIN_PIXELS, maximum)
        flat = resize(flat, size, by_matrices=flat.is_cuda or height + width <= SMALL)
        return patch_rows(normalise(flat.clamp_(0, 255).round_()).unflatten(0, (n, frames)))

    return _by_shape(clips, prepare)


def _by_shape(tensors: Sequence[Tensor], prepare) -> tuple[Tensor, list[Grid]]:
    """Prepare tensors of equal shape in one stack; rows come back in the order given."""
    shapes: dict[tuple[int, ...], list[int]] = {}
    for i, tensor in enumerate(tensors):
        shapes.setdefault(tuple(tensor.shape), []).append(i)
    if len(shapes) == 1:
        rows, grid = prepare(torch.stack(tuple(tensors)))
        return rows, [grid] * len(tensors)
    parts: list[Tensor | None] = [None] * len(tensors)
    grids: list[Grid] = [(0, 0, 0)] * len(tensors)
    for members in shapes.values():
        rows, grid = prepare(torch.stack([tensors[i] for i in members]))
        for i, part in zip(members, rows.chunk(len(members)), strict=True):
            parts[i], grids[i] = part, grid
    return torch.cat(parts), grids
