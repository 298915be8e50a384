"""Pictures between ComfyUI and the trainers: IMAGE and MASK tensors in the shapes that other nodes give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction

import numpy as np
import torch
from comfy_api.latest import InputImpl, Types, io
from torch import Tensor

from ..trainers.errors import UserError

CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
MOST_PEOPLE = 8


def opaque(image: Tensor, name: str = "image") -> Tensor:
    """IMAGE -> float32 [N, H, W, 3] in 0..1 on the CPU: grey becomes RGB, transparency becomes white.

    `image`: float [N, H, W, C] with 1, 3 or 4 channels, [N, H, W] (grey) or one picture [H, W, C] or [H, W].
    `name`: the input that it comes from. Raises UserError for any other shape or type, and for numbers that are not
    finite.
    """
    image = _finite(image, name)
    if not image.is_floating_point():
        raise UserError(f"`{name}` holds {image.dtype} numbers; an IMAGE has floats from 0 to 1")
    shape = tuple(image.shape)
    if image.ndim == 2 or (image.ndim == 3 and shape[-1] not in CHANNELS):
        image = image[..., None]
    if image.ndim == 3:
        image = image[None]
    if image.ndim != 4 or image.shape[-1] not in CHANNELS or 0 in image.shape[1:]:
        raise UserError(
            f"`{name}` has the shape {shape}; an IMAGE is [frames, height, width, channels] with 1 (grey), 3 (RGB) or "
            "4 (RGBA) channels"
        )
    image = image.float().cpu().clamp(0, 1)
    if image.shape[-1] == 4:
        return image[..., :3] * image[..., 3:] + (1 - image[..., 3:])
    return image.expand(*image.shape[:3], 3)


def to_pixels(image: Tensor, name: str = "image") -> Tensor:
    """IMAGE -> uint8 [N, H, W, 3] on the CPU; see `opaque` for the shapes it takes and what it raises."""
    return (opaque(image, name) * 255).round().to(torch.uint8)


def to_masks(mask: Tensor, name: str = "mask") -> Tensor:
    """MASK -> float32 [N, H, W] in 0..1 on the CPU.

    `mask`: [H, W], [N, H, W], or these with further axes of length 1 ([1, 1, H, W], [N, H, W, 1], …). Raises UserError
    for any other shape, and for numbers that are not finite.
    """
    mask, shape = _finite(mask, name), tuple(mask.shape)
    if mask.ndim > 3 and shape[-1] == 1 and shape[-3] != 1:
        mask = mask[..., 0]
    if mask.ndim < 2 or not mask.numel() or sum(length > 1 for length in mask.shape[:-2]) > 1:
        raise UserError(f"`{name}` has the shape {shape}; a MASK is [masks, height, width]")
    return mask.reshape(-1, *mask.shape[-2:]).float().cpu().clamp(0, 1)


def to_image(pixels: Tensor | np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] or [H, W, 3] -> IMAGE float32 [N, H, W, 3] on the CPU."""
    pixels = pixels if isinstance(pixels, Tensor) else torch.from_numpy(np.array(pixels))
    return (pixels if pixels.ndim == 4 else pixels[None]).cpu().float() / 255


def to_video(images: Tensor, fps: float):
    """VIDEO of the frames, an IMAGE, without sound."""
    return InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=Fraction(fps)))


def references_input(tooltip: str, most: int = MOST_PEOPLE) -> io.Input:
    """Slots `ref0`, `ref1`, … that grow as they are connected, for pictures of people."""
    person = io.Image.Input("reference", tooltip="A picture of one person; a batch of pictures is that many people.")
    return io.Autogrow.Input(
        "references", template=io.Autogrow.TemplatePrefix(person, prefix="ref", min=1, max=most), tooltip=tooltip
    )


def named_references(
    slots: Mapping[str, Tensor | None], most: int = MOST_PEOPLE, read: Callable[[Tensor, str], Tensor] = to_pixels
) -> dict[str, Tensor]:
    """One picture [H, W, 3] per person from connected slots, in order, by what an error calls it.

    A batch in a slot is that many people. `read`: what makes pictures of a slot's IMAGE. Raises UserError when nothing
    is connected, for more than `most` pictures, as of a video in place of a picture, and as `opaque` does.
    """
    found = {}
    for slot, image in slots.items():
        if image is None:
            continue
        name = f"references.{slot}"
        pictures = read(image, name)
        for number, picture in enumerate(pictures, 1):
            found[f"picture {number} of `{name}`" if len(pictures) > 1 else f"`{name}`"] = picture
    if not found:
        raise UserError("no reference image is connected; connect one picture per person to `references`")
    if len(found) > most:
        raise UserError(
            f"`references` holds {len(found)} pictures and takes at most {most}; connect one picture per person (a "
            "batch or a video in a slot counts with all its pictures)"
        )
    return found


def to_references(slots: Mapping[str, Tensor | None], most: int = MOST_PEOPLE) -> tuple[np.ndarray, ...]:
    """The pictures uint8 [H, W, 3] of `named_references`."""
    return tuple(picture.numpy() for picture in named_references(slots, most).values())


def _finite(tensor: Tensor, name: str) -> Tensor:
    """The tensor, detached. Raises UserError for anything else, and when a number in it is NaN or infinite."""
    if not isinstance(tensor, Tensor):
        raise UserError(
            f"`{name}` got {'nothing' if tensor is None else type(tensor).__name__} in place of pictures from the node "
            "that it is connected to; look at what that node gives (a switch may be off), or connect another"
        )
    tensor = tensor.detach()
    if not torch.isfinite(tensor).all():
        kind = "NaN" if torch.isnan(tensor).any() else "infinity"
        raise UserError(
            f"`{name}` holds numbers that are not finite ({kind}); the node that made it failed, often by an overflow "
            "in half precision. Run that node in float32, or connect another picture"
        )
    return tensor
