"""Clips as files."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from trainers.errors import UserError
from trainers.pictures.clips import frames_array, read_clip, write_animation
from trainers.pictures.reading import read_picture


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
def test_still_moments_keep_their_frames(tmp_path, clip, suffix, pattern):
    """Writers merge equal frames, and the number of frames enters the reward."""
    frames, fps = read_clip(write_animation(clip[pattern], tmp_path / f"clip{suffix}", fps=15))
    assert np.array_equal(frames, clip[pattern]) and fps == 15


def test_a_foreign_animation_with_a_still_moment_is_filled_up(tmp_path, clip):
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
def test_a_clip_that_is_none_is_a_user_error(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        read_clip(tmp_path / name)


def test_an_empty_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="holds no pictures"):
        read_clip(tmp_path)


def test_a_video_without_its_reader_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="pip install av"):
        read_clip(tmp_path / "clip.mp4")


def test_transparency_becomes_white_and_grey_becomes_colour(tmp_path):
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    Image.new("L", (4, 4), 77).save(tmp_path / "grey.png")
    assert read_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    assert read_picture(tmp_path / "grey.png").getpixel((0, 0)) == (77, 77, 77)


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)]
)
def test_only_bytes_of_several_frames_are_a_clip(wrong):
    with pytest.raises(ValueError, match="uint8"):
        frames_array(wrong)
