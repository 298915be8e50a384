"""The one reader of pictures: upright, RGB, 8 bits, transparency on white."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import UserError

Picture = Image.Image | np.ndarray | Tensor | Path | str
"""A file, an opened picture, or pixels uint8 [H, W], [H, W, 3] or [H, W, 4]."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "MPO")
SIXTEEN_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")
UNREADABLE = (OSError, ValueError, TypeError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning)


def read_picture(source: Picture) -> Image.Image:
    """An RGB picture, upright by its EXIF orientation; transparency becomes white, grey becomes RGB.

    16-bit grey is scaled to 8 bits, and float grey from 0..1. Raises UserError naming the file, or the kind of array.
    """
    try:
        if isinstance(source, (str, Path)):
            with Image.open(source, formats=FORMATS) as opened:
                return _to_rgb(opened)
        return _to_rgb(source if isinstance(source, Image.Image) else Image.fromarray(_pixels(source)))
    except UNREADABLE as error:
        if isinstance(source, (str, Path)):
            raise UserError(
                f"reference image {source} cannot be read ({error}); give an existing PNG, JPEG or WebP file"
            ) from error
        shape = f" of shape {tuple(source.shape)} and type {source.dtype}" if hasattr(source, "shape") else ""
        raise UserError(f"a reference image{shape} is not a picture; give uint8 pixels [height, width, 3]") from error


def read_pixels(source: Picture) -> np.ndarray:
    """`read_picture` as RGB uint8 [H, W, 3]."""
    return np.array(read_picture(source))


def _pixels(source: np.ndarray | Tensor) -> np.ndarray:
    array = source.cpu().numpy() if isinstance(source, Tensor) else np.asarray(source)
    if array.dtype != np.uint8:
        raise ValueError("not uint8")
    return array


def _to_rgb(picture: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in SIXTEEN_BITS:
        picture = Image.fromarray((np.asarray(picture, np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    elif picture.mode == "F":
        picture = Image.fromarray((np.asarray(picture, np.float64) * 255).round().clip(0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")
