"""Short clips: written as animations, read from animations, folders of frames and video files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError, shown
from ..files import atomic_file
from .reading import open_picture, read_pixels, to_rgb

VIDEO_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"}
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
NOTE = re.compile(rb"identity-grpo frames=(\d{1,5}) fps=(\d{1,4}(?:\.\d+)?)")
MAX_CLIP_PIXELS = 1 << 30  # of all frames together, 3 GB in memory: 9 minutes of 240x416 at 20 fps, 17 s of 1080p at 30


def frames_array(frames: Any) -> np.ndarray:
    """uint8 [F, H, W, 3] from a tensor or an array of that shape and type. Raises ValueError for anything else."""
    array = np.asarray(frames.cpu() if hasattr(frames, "cpu") else frames)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or not len(array):
        raise ValueError(f"a clip is uint8 [F, H, W, 3], not {array.dtype} {list(array.shape)}")
    return array


def write_animation(
    frames: Any, path: str | Path, fps: float = 10.0, scale: int = 1, quality: int | None = None
) -> Path:
    """Write uint8 [F, H, W, 3] as an animation that repeats: a GIF if `path` ends in .gif, else a WebP.

    `scale` enlarges by whole pixels. `quality`: of a lossy WebP, 0 to 100; None: lossless. An old file is replaced only
    when the new one is complete.
    """
    path = Path(path)
    pictures = [Image.fromarray(f.repeat(scale, 0).repeat(scale, 1)) for f in frames_array(frames)]
    # Writers merge equal frames into one that lasts longer: the note holds how many there were.
    note = f"identity-grpo frames={len(pictures)} fps={fps:g}".encode()
    if path.suffix == ".gif":
        pictures, options = _one_palette(pictures), {"format": "GIF", "disposal": 1, "comment": note}
    else:
        # Effort of compression makes a lossless file a fifth smaller, and takes twenty times as long.
        kind = {"lossless": True, "quality": 0, "method": 0} if quality is None else {"quality": quality, "method": 2}
        options = {"format": "WEBP", "xmp": note, **kind}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, sync=False) as aside:
        pictures[0].save(
            aside, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0, **options
        )
    return path


def _one_palette(pictures: list[Image.Image]) -> list[Image.Image]:
    """GIF frames with one palette for all: colours do not flicker, and equal pixels stay equal."""
    strip = Image.fromarray(np.concatenate([np.asarray(p) for p in pictures]))
    palette = strip.quantize(256, dither=Image.Dither.NONE)
    return [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]


def read_clip(path: str | Path) -> tuple[np.ndarray, float | None]:
    """Frames uint8 [F, H, W, 3] of an animation (GIF, WebP, PNG), a folder of pictures in name order, or a video file.

    The second value is the frame rate, None for a folder. Raises UserError for what cannot be read, for frames of
    different sizes, and for more than MAX_CLIP_PIXELS.
    """
    path = Path(path)
    if not os.path.isfile(path):
        return _read_folder(path), None
    return _read_video(path) if path.suffix.lower() in VIDEO_SUFFIXES else _read_animation(path)


def check_clip(path: str | Path) -> None:
    """Read the first frame alone, which takes milliseconds. Raises UserError as `read_clip` where it cannot be read."""
    path = Path(path)
    if not os.path.isfile(path):
        read_pixels(_frame_files(path)[0])
    elif path.suffix.lower() in VIDEO_SUFFIXES:
        _stacked([frame for frame, _ in islice(_video_frames(path), 1)], path)
    else:
        with open_picture(path, "clip") as opened:
            to_rgb(opened)


def _frame_files(path: Path) -> list[Path]:
    try:
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES)
    except (OSError, ValueError) as error:
        raise UserError(
            f"there is no clip {shown(path)}; give an animation (GIF, WebP), a folder of frames or a video file"
        ) from error
    if not files:
        raise UserError(f"folder {path} holds no pictures; give the frames as PNG or JPEG files in name order")
    return files


def _read_folder(path: Path) -> np.ndarray:
    frames: list[np.ndarray] = []
    for file in _frame_files(path):
        frames.append(read_pixels(file))
        _refuse_long(len(frames), frames[0], path)
    return _stacked(frames, path)


def _read_animation(path: Path) -> tuple[np.ndarray, float | None]:
    frames, milliseconds = [], []
    with open_picture(path, "clip") as opened:
        note = opened.info.get("comment") or opened.info.get("xmp") or b""
        for index in range(getattr(opened, "n_frames", 1)):
            opened.seek(index)
            frames.append(np.asarray(to_rgb(opened)))
            milliseconds.append(opened.info.get("duration", 0))
            _refuse_long(len(frames), frames[0], path)
    shortest, ours = min(milliseconds), NOTE.fullmatch(note) if isinstance(note, bytes) else None
    rate = float(ours[2]) if ours else 0.0
    if rate:
        if len(frames) == 1:
            milliseconds = [1000 * int(ours[1]) / rate]
    elif shortest and all(m % shortest == 0 for m in milliseconds):
        rate = 1000 / shortest
    else:
        mean = sum(milliseconds) / len(milliseconds)
        return _stacked(frames, path), 1000 / mean if mean else None
    times = [max(1, round(m * rate / 1000)) for m in milliseconds]
    _refuse_long(sum(times), frames[0], path)
    return _stacked([frame for frame, count in zip(frames, times, strict=True) for _ in range(count)], path), rate


def _read_video(path: Path) -> tuple[np.ndarray, float | None]:
    frames: list[np.ndarray] = []
    rate = None
    for frame, stated in _video_frames(path):
        rate = stated
        frames.append(frame)
        _refuse_long(len(frames), frames[0], path)
    return _stacked(frames, path), rate


def _video_frames(path: Path) -> Iterator[tuple[np.ndarray, float | None]]:
    """The frames of a video file as they are decoded, each with the rate of all."""
    try:
        import av
    except ImportError as error:
        raise UserError(
            f"reading {path} needs the package `av` (pip install av); or give a GIF, WebP or folder of frames"
        ) from error
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate) if stream.average_rate else None
            for frame in container.decode(stream):
                yield frame.to_ndarray(format="rgb24"), rate
    except (av.error.FFmpegError, IndexError) as error:
        raise UserError(f"{path} cannot be read as a video ({error})") from error


def _refuse_long(count: int, frame: np.ndarray, path: Path) -> None:
    height, width, _ = frame.shape
    if count * height * width > MAX_CLIP_PIXELS:
        most = MAX_CLIP_PIXELS // (height * width)
        raise UserError(f"clip {path} is too long: at most {most} frames of {width}x{height} are read; cut it")


def _stacked(frames: list[np.ndarray], path: Path) -> np.ndarray:
    if not frames:
        raise UserError(f"{path} holds no frames")
    if len({f.shape for f in frames}) > 1:
        raise UserError(f"the frames of {path} differ in size; give frames of one size")
    return np.stack(frames)
