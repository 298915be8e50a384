"""Between ComfyUI's IMAGE (float [N, H, W, 3] in 0..1) and the pixels of the trainers (uint8); pictures of people as an input."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from comfy_api.latest import io
from torch import Tensor

from ..trainers.errors import UserError


def opaque(image: Tensor) -> Tensor:
    """IMAGE [N, H, W, 3 or 4] -> float32 [N, H, W, 3] in 0..1 on the CPU; transparency becomes white."""
    image = image.detach().float().cpu().clamp(0, 1)
    return image if image.shape[-1] == 3 else image[..., :3] * image[..., 3:4] + (1 - image[..., 3:4])


def to_pixels(image: Tensor) -> Tensor:
    """IMAGE [N, H, W, 3 or 4] -> uint8 [N, H, W, 3] on the CPU; transparency becomes white."""
    return (opaque(image) * 255).round().to(torch.uint8)


def to_image(pixels: Tensor | np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] or [H, W, 3] -> IMAGE float32 [N, H, W, 3] on the CPU."""
    pixels = pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.array(pixels))
    return (pixels if pixels.ndim == 4 else pixels[None]).cpu().float() / 255


def references_input(tooltip: str, most: int = 8) -> io.Input:
    """Slots `ref0`, `ref1`, … that grow as they are connected, for pictures of people."""
    person = io.Image.Input("reference", tooltip="A picture of one person; a batch of pictures is that many people.")
    return io.Autogrow.Input(
        "references", template=io.Autogrow.TemplatePrefix(person, prefix="ref", min=1, max=most), tooltip=tooltip
    )


def to_references(slots: Mapping[str, Tensor | None] | Iterable[Tensor]) -> tuple[np.ndarray, ...]:
    """One picture uint8 [H, W, 3] per person from connected slots, in order; a batch in a slot is that many people.

    Raises UserError when nothing is connected.
    """
    images = slots.values() if isinstance(slots, Mapping) else slots
    found = tuple(picture.numpy() for image in images if image is not None for picture in to_pixels(image))
    if not found:
        raise UserError("no reference image is connected; connect one picture per person to `references`")
    return found
