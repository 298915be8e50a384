"""The one reader of picture files and pixels: upright, RGB, 8 bits a channel, transparency on white."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Union

import numpy as np
from PIL import ExifTags, Image

from ..errors import UserError, shown

if TYPE_CHECKING:
    from torch import Tensor

Picture = Union[Image.Image, np.ndarray, "Tensor", Path, str]  # torch is not imported only to read pictures
"""A file, an opened picture, or pixels uint8 [H, W], [H, W, 3] or [H, W, 4]."""
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
"""Pillow's other plugins stay closed. Its JPEG plugin opens MPO (several JPEGs in one file) as well."""
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF8")
TEXT_BYTES = 64  # that show whether a file is a text
REMEDIES = {"clip": "an animation (GIF, WebP, PNG), a folder of frames or a video file (MP4)"}
"""What to give in place of a file that cannot be read, if that is no picture."""
MAX_PIXELS = 89_000_000  # of a file: just below the number at which Pillow warns of a decompression bomb
MAX_WEBP_PIXELS = 25_000_000  # libwebp takes 16 bytes a pixel, the others 4
KEPT_PIXELS = 4096 * 4096  # larger pictures are shrunk while they are read: no consumer uses more
BAND_PIXELS = 1 << 20  # converted at a time, so that conversions need little memory beside the decoded picture
GREY_16 = ("I", "I;16", "I;16L", "I;16B", "I;16N")
TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
RANGES = (1.0, 255.0, 65535.0)
"""White of a float picture, and of one of 32-bit integers, which have 32 bits in the place of 0..1."""
LEAST = 1 / 16  # of white that the brightest pixel has: in a darker picture the range is a guess
OVERSHOOT = 0.1  # beyond white or below black, as resampling leaves it in floats; it is clipped
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # TIFF tags; Pillow applies neither to 16 bits and floats
SAMPLE_FORMAT, SIGNED = 339, 2  # Pillow reads integers of 32 bits as signed ones
MAX_ASPECT = 200  # of the longer side to the shorter one: the identity reward reads nothing narrower
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture of this EXIF orientation upright."""


def read_picture(source: Picture, max_pixels: int = KEPT_PIXELS) -> Image.Image:
    """An RGB picture, upright by its EXIF orientation, of at most `max_pixels`; transparency becomes white.

    16 bits are scaled to 8. Float pictures are scaled from 0..1, 0..255 or 0..65535, those of 32-bit integers from
    0..255, 0..65535 or 32 bits, whichever their values fill. Larger pictures are reduced by a whole factor, JPEGs while
    they are decoded.

    Raises UserError, naming the file or the kind of array, for what is no picture, is damaged, has more than MAX_PIXELS
    pixels or sides of more than MAX_ASPECT to 1, or holds values that are not finite or in none of these ranges.
    """
    if isinstance(source, str | Path):
        with open_picture(source) as opened:
            return to_rgb(opened, max_pixels)
    picture = source if isinstance(source, Image.Image) else _from_array(source)
    try:
        return to_rgb(picture, max_pixels)
    except (OSError, ValueError) as error:
        raise UserError(f"a reference image of mode {picture.mode} cannot be read ({error}); give it as RGB") from error


def read_pixels(source: Picture) -> np.ndarray:
    """`read_picture` as RGB uint8 [H, W, 3]."""
    return np.array(read_picture(source))


@contextmanager
def open_picture(path: str | Path, what: str = "reference image") -> Iterator[Image.Image]:
    """The opened file, not decoded yet. Raises UserError, also for what fails inside the block."""
    if not os.path.isfile(path):
        problem = "is not a file" if os.path.lexists(path) else "does not exist"
        raise UserError(f"{what} {shown(path)} {problem}; give an existing PNG, JPEG or WebP file")
    if problem := format_problem(path, what):
        raise UserError(problem)
    try:
        with Image.open(path, formats=FORMATS) as opened:
            _refuse_size(opened)
            yield opened
    except Exception as error:  # Pillow's plugins raise nearly anything for a damaged file
        raise UserError(_unreadable(path, what, error)) from error


def format_problem(path: str | Path, what: str = "reference image") -> str | None:
    """What the first bytes of a file show to be wrong with it, without decoding it."""
    try:
        with open(path, "rb") as file:
            first = file.read(TEXT_BYTES)
    except OSError as error:
        return _unreadable(path, what, error.strerror or error)
    if first.startswith(SIGNATURES):
        return None
    text = " but text" if first and _is_text(first) else ""
    return _unreadable(path, what, f"it is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file{text}")


def _is_text(first: bytes) -> bool:
    """Whether the first bytes of a file are UTF-8 without control characters; the last letter may be cut."""
    text = first.decode("utf-8", "ignore")
    return len(text.encode()) >= len(first) - 3 and not any(
        ord(letter) < 32 and not letter.isspace() for letter in text
    )


def _unreadable(path: str | Path, what: str, reason: object) -> str:
    remedy = REMEDIES.get(what, "an existing PNG, JPEG or WebP file")
    return f"{what} {shown(path)} cannot be read ({reason}); give {remedy}"


def to_rgb(picture: Image.Image, max_pixels: int = KEPT_PIXELS) -> Image.Image:
    """`read_picture` of an opened picture (of an animation: its current frame).

    Raises UserError for float values, ValueError for modes that Pillow cannot convert, OSError for a truncated file.
    """
    factor, transparent = _divisor(picture, max_pixels), _transparent_of_16_bits(picture)
    if factor > 1:
        picture.draft(None, (max(1, picture.width // factor), max(1, picture.height // factor)))
    picture.load()
    if transparent:
        picture.info["transparency"] = transparent
    factor = _divisor(picture, max_pixels)
    levels = _levels(picture)
    canvas = Image.new("RGB", (-(-picture.width // factor), -(-picture.height // factor)))
    for top, band in _bands(picture, factor):
        part = _band_to_rgb(Image.fromarray(levels(np.asarray(band))) if levels else band)
        canvas.paste(part.reduce(factor) if factor > 1 else part, (0, top // factor))
    method = UPRIGHT.get(_orientation(picture))
    return canvas if method is None else canvas.transpose(method)


def _divisor(picture: Image.Image, max_pixels: int) -> int:
    return max(1, math.ceil(math.sqrt(picture.width * picture.height / max_pixels)))


def _bands(picture: Image.Image, factor: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """The picture from top to bottom in pieces of whole rows, a multiple of `factor`, with their places."""
    rows = max(1, BAND_PIXELS // (picture.width * factor)) * factor
    for top in range(0, picture.height, rows):
        yield top, picture.crop((0, top, picture.width, min(top + rows, picture.height)))


def _levels(picture: Image.Image) -> Callable[[np.ndarray], np.ndarray] | None:
    """How the values of a 16-bit or float picture become 8-bit grey levels; None for other pictures."""
    tags = getattr(picture, "tag_v2", {})
    inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    # Older versions of Pillow read the 16 bits of a PNG as 32.
    if picture.mode == "F" or (picture.mode == "I" and picture.format != "PNG"):
        signed = picture.format != "TIFF" or tags.get(SAMPLE_FORMAT) == (SIGNED,)
        kind = np.float32 if picture.mode == "F" else np.int32 if signed else np.uint32
        white = _white(*_extremes(picture, kind), kind)

        def scale(values: np.ndarray) -> np.ndarray:
            grey = (values.view(kind) * (255 / white)).round().clip(0, 255).astype(np.uint8)
            return 255 - grey if inverted else grey

        return scale
    if picture.mode not in GREY_16:
        return None
    white = 4095 if tags.get(BITS_PER_SAMPLE) == (12,) else 65535
    table = (np.arange(65536) * (255 / white)).round().clip(0, 255).astype(np.uint8)
    table = 255 - table if inverted else table
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        table[transparent] = 255
    return lambda values: table[values]


def _extremes(picture: Image.Image, kind: type[np.number]) -> tuple[float, float]:
    """The least and the greatest value, which are of this kind; NaN where there is any."""
    found = [(values.min(), values.max()) for _, band in _bands(picture) for values in [np.asarray(band).view(kind)]]
    low, high = zip(*found, strict=True)
    return float(np.min(low)), float(np.max(high))


def _white(low: float, high: float, kind: type[np.number]) -> float:
    """The value of white in a picture of this kind whose values range so; one without any light is black in all."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError("its pixels hold NaN or infinity")
    floats = kind is np.float32
    ranges, overshoot = (RANGES, OVERSHOOT) if floats else ((*RANGES[1:], float(np.iinfo(kind).max)), 0)
    for white in ranges:
        if (high <= 0 or LEAST * white <= high <= white * (1 + overshoot)) and low >= -overshoot * white:
            return white
    known = "0..1, 0..255 or 0..65535" if floats else "0..255, 0..65535 or 32 bits"
    raise UserError(
        f"its {'float' if floats else 'integer'} pixels range from {low:g} to {high:g}, which fills none of {known}; "
        "save it with 8 or 16 bits"
    )


def _transparent_of_16_bits(picture: Image.Image) -> tuple[int, ...] | None:
    """The transparent colour of a PNG of 16-bit RGB before it is loaded, in the 8 bits that Pillow makes of it."""
    colour = picture.info.get("transparency")
    deep = any("16" in str(tile[3]) for tile in getattr(picture, "tile", ()))
    return tuple(value >> 8 for value in colour) if deep and picture.mode == "RGB" and colour else None


def _band_to_rgb(band: Image.Image) -> Image.Image:
    if band.mode == "La":
        band = band.convert("LA")
    if band.mode in TRANSPARENT or "transparency" in band.info:
        band = band.convert("RGBA")
        band = Image.alpha_composite(Image.new("RGBA", band.size, "white"), band)
    return band.convert("RGB")


def _orientation(picture: Image.Image) -> int | None:
    """The EXIF orientation that is left after Pillow has loaded the picture."""
    if picture.format == "TIFF":
        return None  # turned by Pillow, whose older versions leave the tag as it was
    try:
        return picture.getexif().get(ExifTags.Base.Orientation)
    except (OSError, ValueError, TypeError, SyntaxError, KeyError, struct.error):
        return None  # damaged metadata: the pixels may still be good


def _from_array(array: np.ndarray | Tensor) -> Image.Image:
    pixels = np.asarray(array.cpu() if hasattr(array, "cpu") else array)
    shaped = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not shaped or not pixels.size:
        raise UserError(
            f"a reference image of shape {tuple(array.shape)} and type {array.dtype} is no picture; give uint8 pixels "
            "[height, width, 3]"
        )
    picture = Image.fromarray(pixels)
    try:
        _refuse_size(picture)
    except UserError as error:
        raise UserError(f"a reference image cannot be used: {error}") from None
    return picture


def _refuse_size(opened: Image.Image) -> None:
    short, long = sorted(opened.size)
    if long > MAX_ASPECT * short:
        size = f"{opened.width}x{opened.height}"
        raise UserError(f"it has {size} pixels and is too narrow, more than {MAX_ASPECT} to 1; crop it to the person")
    pixels, most = opened.width * opened.height, MAX_WEBP_PIXELS if opened.format == "WEBP" else MAX_PIXELS
    if pixels > most:
        raise UserError(f"it has {pixels / 1e6:.0f} million pixels, at most {most / 1e6:.0f} million are read")
