"""The one reader: orientation, modes, depths, sizes, and what is refused."""

from __future__ import annotations

import errno
import os
import struct
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from trainers.errors import UserError
from trainers.pictures import reading
from trainers.pictures.reading import format_problem, open_picture, read_picture, read_pixels

TURNS = {  # what a camera did with an upright picture that it stored with this orientation, in numpy's terms
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}
LOSSLESS = {
    "jpg": {"quality": 95},
    "mpo": {"quality": 95, "format": "MPO", "save_all": True},
    "webp": {"lossless": True},
}


@pytest.fixture
def upright() -> np.ndarray:
    """Four corners of different colours: no two orientations look alike."""
    pixels = np.full((64, 48, 3), 128, np.uint8)
    pixels[:32, :24], pixels[:32, 24:], pixels[32:, :24] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    return pixels


def corners(pixels: np.ndarray) -> np.ndarray:
    return np.stack([pixels[8, 8], pixels[8, -8], pixels[-8, 8], pixels[-8, -8]]).astype(int)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "mpo"])
@pytest.mark.parametrize("orientation", TURNS)
def test_every_orientation_is_turned_upright(tmp_path, upright, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"phone.{suffix}"
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](upright)))
    stored.save(path, exif=exif, **LOSSLESS.get(suffix, {}))
    found = read_pixels(path)
    assert found.shape == upright.shape
    assert abs(corners(found) - corners(upright)).max() < 30


def test_an_orientation_in_xmp_alone_is_followed(tmp_path, upright):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta tiff:Orientation="6"/>')
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(tmp_path / "a.png", pnginfo=info)
    assert np.array_equal(read_pixels(tmp_path / "a.png"), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_metadata_do_not_cost_the_picture(tmp_path, upright):
    Image.fromarray(upright).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken")
    assert np.array_equal(read_pixels(tmp_path / "a.png"), upright)


def test_a_large_jpeg_is_turned_after_it_is_reduced(tmp_path, upright):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.rot90(upright)).resize((800, 600), Image.Resampling.NEAREST)
    stored.save(tmp_path / "a.jpg", exif=exif)
    found = np.asarray(read_picture(tmp_path / "a.jpg", 100 * 100))
    assert found.shape[0] > found.shape[1]
    assert abs(corners(found) - corners(upright)).max() < 30


RAMP = np.linspace(0, 65535, 60).round().astype(np.uint16)[None].repeat(40, 0)
IN_8_BITS = np.round(RAMP / 257.0)[..., None].repeat(3, 2)


def error_of(source) -> float:
    return float(abs(read_pixels(source).astype(float) - IN_8_BITS).max())


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled(tmp_path, suffix):
    Image.fromarray(RAMP).save(tmp_path / f"grey.{suffix}")
    assert error_of(tmp_path / f"grey.{suffix}") <= 1


@pytest.mark.parametrize("mode, order", [("I;16", "<u2"), ("I;16B", ">u2"), ("I", "<i4")])
def test_16_bit_grey_in_memory_is_scaled(mode, order):
    picture = Image.frombytes(mode, RAMP.shape[::-1], RAMP.astype(order).tobytes())
    assert error_of(picture) <= 1


def tiff(path: Path, data: bytes, bits: int, photometric: int = 1, kind: int = 1, order: str = "<") -> Path:
    """A one-channel TIFF of RAMP's size, written by hand: Pillow writes no white-is-zero, 12 bits or big endian."""
    height, width = RAMP.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = [struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in {**tags, 339: kind}.items()]
    start = b"II*\0" if order == "<" else b"MM\0*"
    offset = struct.pack(f"{order}I", 8 + len(data))
    path.write_bytes(start + offset + data + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + b"\0" * 4)
    return path


def packed_12_bits(values: np.ndarray) -> bytes:
    pairs = values.reshape(-1, 2).astype(np.uint32)
    whole = (pairs[:, 0] << 12) | pairs[:, 1]
    return np.stack([whole >> 16, whole >> 8 & 255, whole & 255], 1).astype(np.uint8).tobytes()


@pytest.mark.parametrize(
    "name, data, options",
    [
        ("little", RAMP.astype("<u2").tobytes(), {"bits": 16}),
        ("big", RAMP.astype(">u2").tobytes(), {"bits": 16, "order": ">"}),
        ("white is zero", (65535 - RAMP).astype("<u2").tobytes(), {"bits": 16, "photometric": 0}),
        ("12 bits", packed_12_bits(RAMP >> 4), {"bits": 12}),
        ("float", (RAMP / 65535).astype("<f4").tobytes(), {"bits": 32, "kind": 3}),
        ("float, big", (RAMP / 65535).astype(">f4").tobytes(), {"bits": 32, "kind": 3, "order": ">"}),
        ("32 bits", (RAMP * np.uint64(65537)).astype("<u4").tobytes(), {"bits": 32}),
        ("32 bits, signed", (RAMP * np.uint64(32768)).astype("<i4").tobytes(), {"bits": 32, "kind": 2}),
        ("16 of 32 bits", RAMP.astype("<u4").tobytes(), {"bits": 32}),
        ("8 of 32 bits", (RAMP >> 8).astype("<i4").tobytes(), {"bits": 32, "kind": 2}),
        ("float, white is zero", (1 - RAMP / 65535).astype("<f4").tobytes(), {"bits": 32, "kind": 3, "photometric": 0}),
    ],
)
def test_tiffs_of_more_than_8_bits_are_scaled(tmp_path, name, data, options):
    assert error_of(tiff(tmp_path / "grey.tif", data, **options)) <= 1


@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_float_pictures_are_scaled_from_their_range(tmp_path, white):
    Image.fromarray((RAMP / 65535 * white).astype(np.float32)).save(tmp_path / "f.tif")
    assert error_of(tmp_path / "f.tif") <= 1


def test_a_resampled_float_picture_overshoots_a_little(tmp_path):
    Image.fromarray((RAMP / 65535 * 1.1 - 0.05).astype(np.float32)).save(tmp_path / "f.tif")
    found = read_pixels(tmp_path / "f.tif")
    assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize(
    "low, high, sentence",
    [
        (0, 7, "from 0 to 7"),
        (0, 1e-3, "from 0 to 0.001, which fills none of 0..1,"),
        (-1, 1, "from -1 to 1"),
        (0, 1e6, r"to 1e\+06"),
        (0, np.nan, "NaN"),
        (0, np.inf, "infinity"),
    ],
)
def test_float_pictures_of_no_known_range_are_refused(tmp_path, low, high, sentence):
    values = np.zeros((4, 4), np.float32)
    values[1, 1], values[2, 2] = low, high
    Image.fromarray(values).save(tmp_path / "f.tif")
    with pytest.raises(UserError, match=f"f.tif cannot be read .*{sentence}"):
        read_picture(tmp_path / "f.tif")


@pytest.mark.parametrize("value", [-1, 3, 300, 70_000])
def test_integers_of_no_known_range_are_refused(tmp_path, value):
    Image.fromarray(np.full((4, 4), value, np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(UserError, match=f"its integer pixels range from {value} to {value}, which fills none of"):
        read_picture(tmp_path / "i.tif")


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_a_picture_without_any_light_is_black(tmp_path, kind):
    Image.fromarray(np.zeros((4, 4), kind)).save(tmp_path / "black.tif")
    assert not read_pixels(tmp_path / "black.tif").any()


@pytest.mark.parametrize("width, height", [(401, 2), (1, 300)])
def test_a_picture_too_narrow_for_the_reward_is_refused_as_file_and_as_pixels(tmp_path, width, height):
    Image.new("RGB", (width, height)).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", np.zeros((height, width, 3), np.uint8)):
        with pytest.raises(
            UserError, match=f"it has {width}x{height} pixels and is too narrow, more than 200 to 1; crop it"
        ):
            read_picture(source)
    assert read_pixels(np.zeros((2, 400, 3), np.uint8)).shape == (2, 400, 3)


def png(path: Path, values: np.ndarray, colour: int, *chunks: tuple[bytes, bytes]) -> Path:
    """A PNG of 16 bits a channel, written by hand."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


def test_16_bit_rgb_and_grey_with_alpha_are_scaled(tmp_path):
    opaque = np.full_like(RAMP, 65535)
    assert error_of(png(tmp_path / "rgb.png", np.stack([RAMP] * 3, -1), 2)) <= 1
    assert error_of(png(tmp_path / "la.png", np.stack([RAMP, opaque], -1), 4)) <= 1
    assert error_of(png(tmp_path / "rgba.png", np.stack([RAMP] * 3 + [opaque], -1), 6)) <= 1


@pytest.mark.parametrize("colour", [(65535, 0, 0), (5, 5, 5), (513, 258, 40_000)])
def test_the_transparent_colour_of_16_bit_rgb_becomes_white(tmp_path, colour):
    values = np.array([[colour, (30_000, 20_000, 10_000)]], np.uint16)
    found = read_pixels(png(tmp_path / "a.png", values, 2, (b"tRNS", struct.pack(">HHH", *colour))))
    assert found[0, 0].tolist() == [255] * 3
    assert found[0, 1].tolist() == pytest.approx([117, 78, 39], abs=1)


def test_the_transparent_value_of_16_bit_grey_becomes_white(tmp_path):
    path = png(tmp_path / "a.png", RAMP, 0, (b"tRNS", struct.pack(">H", int(RAMP[0, 7]))))
    found = read_pixels(path)
    assert (found[:, 7] == 255).all() and abs(found[:, 8].astype(float) - IN_8_BITS[:, 8]).max() <= 1


@pytest.mark.parametrize(
    "mode, colour, expected",
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 128), (166, 166, 166)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("RGBX", (10, 20, 30, 9), (10, 20, 30)),
    ],
)
def test_modes_become_rgb_on_white(mode, colour, expected):
    assert np.abs(np.asarray(read_picture(Image.new(mode, (3, 2), colour))).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode, straight", [("La", "LA"), ("RGBa", "RGBA")])
def test_premultiplied_transparency_lies_on_white_too(mode, straight):
    picture = Image.new(straight, (3, 2), (100, 128) if straight == "LA" else (100, 100, 100, 128))
    assert np.asarray(read_picture(picture.convert(mode)))[0, 0].tolist() == pytest.approx([177] * 3, abs=1)


def test_a_palette_s_transparent_colour_becomes_white(tmp_path):
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 1), 1)
    picture.save(tmp_path / "a.png", transparency=0)
    picture.save(tmp_path / "a.gif", transparency=0)
    for suffix in ("png", "gif"):
        found = read_pixels(tmp_path / f"a.{suffix}")
        assert found[0, 0].tolist() == [255] * 3 and found[1, 1].tolist() == [200, 100, 50]


def test_a_picture_in_memory_that_holds_nan_is_a_user_error():
    with pytest.raises(UserError, match="of mode F cannot be read .*NaN"):
        read_picture(Image.new("F", (2, 2), float("nan")))


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3), (6, 5, 4)])
def test_arrays_and_tensors_read_as_the_picture_that_they_hold(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = np.asarray(read_picture(Image.fromarray(pixels)))
    assert np.array_equal(read_pixels(pixels), expected)
    assert np.array_equal(read_pixels(torch.from_numpy(pixels)), expected)


@pytest.mark.parametrize("shape", [(4,), (0, 4, 3), (4, 4, 2), (2, 4, 4, 3)])
def test_arrays_of_another_shape_are_refused(shape):
    with pytest.raises(UserError, match="is no picture"):
        read_picture(np.zeros(shape, np.uint8))


# --- sizes -----------------------------------------------------------------------------------------------------------


def decoded_pixels(monkeypatch) -> list[int]:
    """A list that grows by the number of pixels of every picture that is decoded."""
    sizes: list[int] = []
    load = Image.Image.load

    def counted(self):
        sizes.append(self.width * self.height)
        return load(self)

    monkeypatch.setattr(Image.Image, "load", counted)
    return sizes


def checkered(size: int) -> np.ndarray:
    """White left of the middle, black right of it."""
    pixels = np.zeros((size, size, 3), np.uint8)
    pixels[:, : size // 2] = 255
    return pixels


def test_a_large_jpeg_is_decoded_small(tmp_path):
    Image.fromarray(checkered(1600)).save(tmp_path / "a.jpg")
    with open_picture(tmp_path / "a.jpg") as opened:
        found = reading.to_rgb(opened, 400 * 400)
        assert opened.size == (400, 400)
    assert found.size == (400, 400) and found.getpixel((10, 10)) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "bmp", "gif", "jpg"])
@pytest.mark.parametrize("limit", [300 * 300, 1000, 10**6])
def test_no_picture_is_larger_than_asked_and_all_of_it_is_there(tmp_path, suffix, limit):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(checkered(700)[:601]).save(path)
    found = read_picture(path, limit)
    assert limit / 5 < found.width * found.height <= max(limit, 1) or limit > 601 * 700
    assert found.width / found.height == pytest.approx(700 / 601, rel=0.1)
    means = np.asarray(found).astype(float).mean((0, 2))
    assert means[: len(means) // 2 - 1].min() > 240 and means[len(means) // 2 + 2 :].max() < 15


def test_conversions_take_bands_and_join_them_without_a_seam(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (97, 31, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    whole = [read_pixels(tmp_path / "a.png"), np.asarray(read_picture(tmp_path / "a.png", 500))]
    monkeypatch.setattr(reading, "BAND_PIXELS", 100)
    assert np.array_equal(read_pixels(tmp_path / "a.png"), whole[0])
    assert np.array_equal(np.asarray(read_picture(tmp_path / "a.png", 500)), whole[1])
    bands = [band.width * band.height for _, band in reading._bands(Image.open(tmp_path / "a.png"), 3)]
    assert max(bands) <= 31 * 3 and sum(bands) == 31 * 97


def header(path: Path, width: int, height: int) -> Path:
    """A PNG that announces this size and holds next to nothing."""
    png(path, np.zeros((1, 1), np.uint16), 0)
    data = path.read_bytes()
    head = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    path.write_bytes(data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:])
    return path


@pytest.mark.parametrize("width, height", [(9500, 9500), (16_000, 16_000), (2**31 - 1, 1), (60_000, 60_000)])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch, width, height):
    sizes = decoded_pixels(monkeypatch)
    path = header(tmp_path / "bomb.png", width, height)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(UserError, match="bomb.png cannot be read"):
            read_picture(path)
    assert sizes == []


def test_a_webp_may_be_smaller_than_others_since_its_decoder_takes_more(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_WEBP_PIXELS", 99)
    for suffix in ("webp", "png"):
        Image.new("RGB", (10, 10)).save(tmp_path / f"a.{suffix}")
    assert read_picture(tmp_path / "a.png").size == (10, 10)
    with pytest.raises(UserError, match="a.webp cannot be read"):
        read_picture(tmp_path / "a.webp")


def test_a_picture_of_64_million_pixels_is_within_the_limit_and_reduced_by_two(tmp_path):
    with open_picture(header(tmp_path / "large.png", 8000, 8000)) as opened:
        assert reading._divisor(opened, reading.KEPT_PIXELS) == 2


# --- what is no picture ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG", b"hello world", b"DDS \x7c\0\0\0", b"%PDF-1.4", b"P6 2 2 255 xxxxx"]
)
def test_what_is_no_picture_of_the_listed_formats_is_refused(tmp_path, content):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"reference image .*a\.png cannot be read .*give an existing PNG"):
        read_picture(path)


def test_a_dds_that_pillow_could_open_is_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.dds")
    (tmp_path / "a.dds").rename(tmp_path / "a.png")
    with pytest.raises(UserError, match="is not a PNG"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif"])
@pytest.mark.parametrize("max_pixels", [reading.KEPT_PIXELS, 64 * 64])
def test_a_truncated_file_is_refused(tmp_path, suffix, max_pixels):
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    for share in (0.3, 0.6, 0.95):
        (tmp_path / f"part.{suffix}").write_bytes(data[: int(share * len(data))])
        with pytest.raises(UserError, match=f"part.{suffix} cannot be read"):
            read_picture(tmp_path / f"part.{suffix}", max_pixels)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif"])
def test_a_damaged_file_is_read_or_refused_and_never_crashes(tmp_path, suffix):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(tmp_path / f"whole.{suffix}")
    data = np.frombuffer((tmp_path / f"whole.{suffix}").read_bytes(), np.uint8)
    path = tmp_path / f"damaged.{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(60):
            damaged = data.copy()
            damaged[rng.integers(4, len(data), 6)] = rng.integers(0, 256, 6)
            path.write_bytes(damaged.tobytes())
            with suppress(UserError):
                assert read_picture(path).mode == "RGB"


@pytest.mark.parametrize("name", ["none.png", "x" * 5000, "a\0b.png", "none/" * 2000])
def test_a_path_that_leads_nowhere_is_named_shortly(tmp_path, name):
    with pytest.raises(UserError, match="does not exist") as caught:
        read_picture(f"{tmp_path}/{name}")
    assert len(str(caught.value)) < 300


def test_a_folder_is_not_a_picture(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        read_picture(tmp_path)


@pytest.mark.pipes
def test_a_pipe_and_a_device_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(UserError, match="is not a file"):
            read_picture(path)


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    """The tests may run as root, for whom there is no such file."""
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(reading, "open", refuse, raising=False)
    with pytest.raises(UserError, match=r"a.png cannot be read \(Permission denied\)"):
        read_picture(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif"])
def test_the_first_bytes_of_every_format_are_known(tmp_path, suffix):
    Image.new("RGB", (8, 8)).save(tmp_path / f"a.{suffix}")
    assert format_problem(tmp_path / f"a.{suffix}") is None
