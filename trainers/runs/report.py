"""What a run shows: its curve, clips before and after, a table. Plain data in, files out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import drawing
from ..clips import frames_array, read_picture, write_animation
from ..drawing import BLUE, FAINT, GAP, GREEN, INK, LABEL, ORANGE, PAPER, PURPLE
from .table import table

__all__ = ["before_after", "clip_sheet", "frame_strip", "plot_curve", "table"]


def plot_curve(metrics: Sequence[Mapping[str, Any]], path: str | Path, title: str = "") -> Path:
    """The rows of metrics.jsonl as a PNG: reward, share of held-out pairs won with its 95% interval, the drawn world's own
    measures where there are any, and the distance from the reference policy.
    """
    from matplotlib.figure import Figure

    train = [row for row in metrics if row.get("kind") == "train"]
    held_out = [row for row in metrics if row.get("kind") == "evaluation"]
    panels = [_reward_panel, _won_panel]
    panels += [_oracle_panel] if any(row.get("identity") is not None for row in held_out) else []
    panels += [_kl_panel] if any(row.get("kl") is not None for row in train) else []
    rows, columns = (2, 2) if len(panels) == 4 else (1, len(panels))
    figure = Figure(figsize=(5 * columns, 3.4 * rows), dpi=150, facecolor=PAPER, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    for axes, draw in zip(figure.subplots(rows, columns).flat, panels, strict=True):
        _plain(axes)
        draw(axes, train, held_out)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="best")
    if title:
        figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def clip_sheet(
    references: Sequence[Sequence[Any]],
    before: Sequence[Any],
    after: Sequence[Any],
    path: str | Path,
    captions: Sequence[str] = (),
    notes: Sequence[tuple[str, str]] = (),
    frames: int = 5,
    frame_width: int = 200,
) -> Path:
    """A PNG with a block for each item: its reference pictures, then some frames before and after training, one above the other.

    references: pictures (files or uint8 [H, W, 3]) per item; before, after: uint8 [F, H, W, 3] per item; captions: the prompt;
    notes: what to write beside the two rows, e.g. the scores. `frames` of each clip are shown, evenly spaced.
    """
    strips = []
    for old, new in zip(map(frames_array, before), map(frames_array, after), strict=True):
        chosen = np.linspace(0, len(old) - 1, min(frames, len(old))).round().astype(int)
        strips.append([drawing.strip([drawing.scaled(clip[i], frame_width) for i in chosen]) for clip in (old, new)])
    columns = drawing.columns(references, [2 * rows[0].height + LABEL for rows in strips])
    blocks = [
        _block(column, rows, drawing.at_or_empty(captions, index), drawing.at_or_empty(notes, index) or ("", ""))
        for index, (column, rows) in enumerate(zip(columns, strips, strict=True))
    ]
    sheet = drawing.stack(blocks, gap=28, margin=24)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)
    return path


def before_after(
    references: Sequence[Sequence[Any]],
    before: Sequence[Any],
    after: Sequence[Any],
    path: str | Path,
    fps: float = 10.0,
    captions: Sequence[str] = (),
    notes: Sequence[tuple[str, str]] = (),
    frame_width: int = 240,
) -> Path:
    """The same blocks as `clip_sheet`, moving: an animation (.webp or .gif) with the two clips of every item side by side."""
    clips = [(frames_array(old), frames_array(new)) for old, new in zip(before, after, strict=True)]
    columns = drawing.columns(references, [drawing.scaled(old[0], frame_width).height for old, _ in clips])
    pages = []
    for time in range(max(max(len(old), len(new)) for old, new in clips)):
        blocks = []
        for index, (column, pair) in enumerate(zip(columns, clips, strict=True)):
            now = [drawing.scaled(clip[min(time, len(clip) - 1)], frame_width) for clip in pair]
            blocks.append(
                _pair(column, now, drawing.at_or_empty(captions, index), drawing.at_or_empty(notes, index) or ("", ""))
            )
        pages.append(np.asarray(drawing.stack(blocks, gap=18, margin=16)))
    return write_animation(np.stack(pages), path, fps)


def frame_strip(
    references: Sequence[Any], clip: Any, path: str | Path, caption: str = "", frames: int = 5, frame_width: int = 200
) -> Path:
    """A PNG of one clip uint8 [F, H, W, 3]: its reference pictures and `frames` evenly spaced frames in a row."""
    clip = frames_array(clip)
    chosen = np.linspace(0, len(clip) - 1, min(frames, len(clip))).round().astype(int)
    strip = drawing.strip([drawing.scaled(clip[i], frame_width) for i in chosen])
    column = drawing.column([read_picture(p) for p in references], strip.height)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.stack([drawing.captioned(column, strip, caption, top=8)], 0, 24).save(path, optimize=True)
    return path


# --- the curve's panels ------------------------------------------------------------------------------------------------------


def _reward_panel(axes, train: list, held_out: list) -> None:
    axes.set_title("reward", **_TITLE)
    if train:
        x, y = _series(train, "reward_mean")
        axes.plot(x, y, color=BLUE, alpha=0.25, linewidth=1)
        axes.plot(x, _smooth(y), color=BLUE, linewidth=1.8, label="training rollouts")
    x, y = _series(held_out, "reward_mean")
    axes.plot(x, y, color=ORANGE, linewidth=1.8, marker="o", markersize=4, label="held-out items")


def _won_panel(axes, train: list, held_out: list) -> None:
    axes.set_title("held-out pairs won against the untouched policy", **_TITLE)
    measured = [row for row in held_out if row["iteration"] > 0]
    x, y = _series(measured, "win")
    if len(x):
        low, high = _series(measured, "win_low")[1], _series(measured, "win_high")[1]
        axes.fill_between(x, low, high, color=GREEN, alpha=0.15, linewidth=0, label="95% interval")
        axes.plot(x, y, color=GREEN, linewidth=1.8, marker="o", markersize=4)
    axes.axhline(0.5, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _oracle_panel(axes, train: list, held_out: list) -> None:
    axes.set_title("the renderer's own measures", **_TITLE)
    for name, colour in (("identity", PURPLE), ("alignment", FAINT)):
        x, y = _series(held_out, name)
        if len(x):
            axes.plot(x, y, color=colour, linewidth=1.8, marker="o", markersize=4, label=f"{name} (no reward sees it)")


def _kl_panel(axes, train: list, held_out: list) -> None:
    axes.set_title("KL to the reference policy", **_TITLE)
    x, y = _series(train, "kl")
    axes.plot(x, y, color=INK, alpha=0.25, linewidth=1)
    axes.plot(x, _smooth(y), color=INK, linewidth=1.8)


_TITLE = {"fontsize": 9.5, "color": INK, "loc": "left", "pad": 8}


def _plain(axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelsize=8, labelcolor=INK)
    axes.grid(axis="y", color="#e6e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("iteration", fontsize=8.5, color=INK)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(row["iteration"], row[name]) for row in rows if row.get(name) is not None]
    return np.array([p[0] for p in points], float), np.array([p[1] for p in points], float)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over a tenth of the run to both sides (fewer at its ends)."""
    half = max(1, len(values) // 20)
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


# --- pictures ----------------------------------------------------------------------------------------------------------------


def _block(column: Image.Image, rows: Sequence[Image.Image], caption: str, notes: tuple[str, str]) -> Image.Image:
    """References on the left, the rows one above the other on the right, the caption above."""
    right = drawing.stack(
        [drawing.labelled(*part) for part in zip(rows, ("before", "after"), notes, (FAINT, GREEN), strict=True)], 0, 0
    )
    return drawing.captioned(column, right, caption)


def _pair(column: Image.Image, now: Sequence[Image.Image], caption: str, notes: tuple[str, str]) -> Image.Image:
    """References, then the two frames side by side."""
    right = drawing.strip(
        [drawing.labelled(*part) for part in zip(now, ("before", "after"), notes, (FAINT, GREEN), strict=True)], GAP
    )
    return drawing.captioned(column, right, caption)
