"""Clips as files: what is written reads back, and what is refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from trainers.errors import UserError
from trainers.pictures import clips
from trainers.pictures.clips import check_clip, frames_array, read_clip, write_animation


@pytest.fixture
def clip() -> np.ndarray:
    """Few colours, so that a palette holds them."""
    frames = np.full((5, 16, 24, 3), 200, np.uint8)
    for time in range(5):
        frames[time, 4:8, 3 * time : 3 * time + 6] = (250, 40 * time, 10)
    return frames


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_an_animation_reads_back(tmp_path, clip, suffix):
    frames, fps = read_clip(write_animation(clip, tmp_path / f"clip{suffix}", fps=10))
    assert np.array_equal(frames, clip) and fps == pytest.approx(10)


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
@pytest.mark.parametrize("pattern", [[0, 0, 0, 0], [0, 0, 1, 1, 1, 2, 2], [0, 1, 1, 2]])
def test_equal_frames_are_kept(tmp_path, clip, suffix, pattern):
    """Writers merge equal frames, and the number of frames enters the reward."""
    frames, fps = read_clip(write_animation(clip[pattern], tmp_path / f"clip{suffix}", fps=15))
    assert np.array_equal(frames, clip[pattern]) and fps == 15


def test_a_frame_that_is_shown_longer_is_repeated(tmp_path, clip):
    pictures = [Image.fromarray(f) for f in clip[:3]]
    pictures[0].save(tmp_path / "x.gif", save_all=True, append_images=pictures[1:], duration=[50, 150, 50])
    frames, fps = read_clip(tmp_path / "x.gif")
    assert len(frames) == 5 and fps == pytest.approx(20)


def test_frames_are_enlarged_by_whole_pixels(tmp_path, clip):
    frames, _ = read_clip(write_animation(clip, tmp_path / "clip.webp", scale=3))
    assert np.array_equal(frames[:, 1::3, 1::3], clip)


def test_a_folder_is_a_clip_without_a_rate(tmp_path, clip):
    for index, frame in enumerate(clip):
        Image.fromarray(frame).save(tmp_path / f"{index:03d}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    frames, fps = read_clip(tmp_path)
    assert np.array_equal(frames, clip) and fps is None


def test_frames_of_two_sizes_are_refused(tmp_path):
    for index, size in enumerate([(8, 8), (8, 9)]):
        Image.new("RGB", size).save(tmp_path / f"{index}.png")
    with pytest.raises(UserError, match="differ in size"):
        read_clip(tmp_path)


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("none.webp", None, "there is no clip"),
        ("bad.gif", b"GIF89a but not really", "cannot be read"),
        ("text.webp", b"hello", "cannot be read"),
    ],
)
def test_a_file_that_is_no_clip_is_a_user_error(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for read in (read_clip, check_clip):
        with pytest.raises(UserError, match=sentence):
            read(tmp_path / name)


@pytest.mark.parametrize("read", [read_clip, check_clip])
def test_an_empty_folder_is_a_user_error(tmp_path, read):
    with pytest.raises(UserError, match="holds no pictures"):
        read(tmp_path)


def test_a_check_reads_one_frame(tmp_path, clip):
    frames = tmp_path / "frames"
    frames.mkdir()
    Image.fromarray(clip[0]).save(frames / "0.png")
    (frames / "1.png").write_bytes(b"damaged")
    for path in (frames, write_animation(clip, tmp_path / "clip.webp")):
        check_clip(path)


def test_a_file_whose_copy_was_cut_short_is_not_passed_by_a_check(tmp_path, clip):
    path = write_animation(clip, tmp_path / "clip.webp")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read"):
        check_clip(path)


def test_a_video_without_its_reader_names_the_package_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"")
    for read in (read_clip, check_clip):
        with pytest.raises(UserError, match="pip install av"):
            read(tmp_path / "clip.mp4")


def test_transparent_frames_lie_on_white(tmp_path):
    frames = [Image.new("P", (4, 4), 1) for _ in range(3)]
    for place, frame in enumerate(frames):
        frame.putpalette([10, 20, 30, 200, 100, 50])
        frame.putpixel((place, 0), 0)
    options = {"save_all": True, "append_images": frames[1:], "transparency": 0, "disposal": 2, "duration": 100}
    frames[0].save(tmp_path / "clip.gif", **options)
    found, _ = read_clip(tmp_path / "clip.gif")
    assert [found[i, 0, i].tolist() for i in range(3)] == [[255] * 3] * 3
    assert [found[i, 3, 3].tolist() for i in range(3)] == [[200, 100, 50]] * 3


def test_a_picture_with_a_comment_is_a_clip_of_one_frame(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "identity-grpo frames=5 fps=10")
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "a.png", pnginfo=info)
    frames, fps = read_clip(tmp_path / "a.png")
    assert frames.shape == (1, 4, 4, 3) and fps is None


def test_a_clip_that_a_phone_stored_sideways_is_upright(tmp_path, clip):
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = [Image.fromarray(np.ascontiguousarray(np.rot90(frame))) for frame in clip]
    options = {"save_all": True, "append_images": sideways[1:], "lossless": True, "duration": 100}
    sideways[0].save(tmp_path / "clip.webp", exif=exif, **options)
    assert np.array_equal(read_clip(tmp_path / "clip.webp")[0], clip)


@pytest.mark.parametrize("durations", [[10, 600_000], [10, 10]])
def test_a_clip_of_too_many_pixels_is_refused(tmp_path, monkeypatch, durations):
    """One frame may stand for an hour: what it is unpacked to counts."""
    monkeypatch.setattr(clips, "MAX_CLIP_PIXELS", 100 if durations[1] == 10 else 10_000)
    frames = [Image.new("RGB", (8, 8), (90 * i, 0, 0)) for i in range(2)]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:], duration=durations)
    with pytest.raises(UserError, match="x.gif is too long: at most .* frames of 8x8"):
        read_clip(tmp_path / "x.gif")


def test_a_folder_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(clips, "MAX_CLIP_PIXELS", 100)
    for index in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{index}.png")
    with pytest.raises(UserError, match="too long"):
        read_clip(tmp_path)


@pytest.mark.pipes
def test_a_pipe_is_not_a_clip(tmp_path):
    os.mkfifo(tmp_path / "pipe.gif")
    with pytest.raises(UserError, match="there is no clip"):
        read_clip(tmp_path / "pipe.gif")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b.gif"])
def test_a_name_that_no_file_can_have_is_a_user_error(tmp_path, name):
    with pytest.raises(UserError, match="there is no clip"):
        read_clip(f"{tmp_path}/{name}")


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_a_failed_write_leaves_the_old_file(tmp_path, clip, monkeypatch, suffix):
    path = write_animation(clip, tmp_path / f"clip{suffix}")
    before = path.read_bytes()

    def fail(self, file, **_):
        Path(file).write_bytes(b"half")
        raise OSError("disk")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk"):
        write_animation(clip[::-1], path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)]
)
def test_only_bytes_of_several_frames_are_a_clip(wrong):
    with pytest.raises(ValueError, match="uint8"):
        frames_array(wrong)
