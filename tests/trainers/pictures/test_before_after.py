"""Curves, sheets and animations of a run."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from trainers.commands.tables import markdown_table
from trainers.pictures.before_after import before_after, clip_sheet, frame_strip
from trainers.pictures.clips import read_clip
from trainers.pictures.curves import plot_curve


def clip(value: int, frames: int = 9) -> np.ndarray:
    return np.full((frames, 16, 32, 3), value, np.uint8)


PICTURES = [np.full((20, 20, 3), 90, np.uint8), np.full((30, 20, 3), 30, np.uint8)]


def colours(path) -> set[tuple[int, int, int]]:
    return {tuple(c) for c in np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)}


def test_a_table_is_markdown_with_every_column():
    assert markdown_table([{"run": "a", "rate": 0.5}, {"run": "long", "left": "3 s"}]).splitlines() == [
        "| run  | rate  | left |",
        "|------|-------|------|",
        "| a    | 0.500 |      |",
        "| long |       | 3 s  |",
    ]


METRICS = [
    {
        "kind": "evaluation",
        "iteration": 0,
        "reward_mean": 1.0,
        "win": 0.0,
        "win_low": 0.0,
        "win_high": 0.0,
        "identity": 0.5,
        "alignment": 0.9,
    },
    {"kind": "train", "iteration": 1, "reward_mean": 1.1, "kl": 0.1},
    {"kind": "train", "iteration": 2, "reward_mean": None, "kl": None},
    {
        "kind": "evaluation",
        "iteration": 2,
        "reward_mean": 1.3,
        "win": 0.7,
        "win_low": 0.6,
        "win_high": 0.8,
        "identity": 0.6,
        "alignment": 0.9,
    },
]


@pytest.mark.parametrize(
    "rows, shape",
    [
        (METRICS, (2, 2)),
        ([*METRICS, {"kind": "train", "iteration": 3, "reward_mean": 1.2, "reward_motion": 0.9}], (2, 3)),
        ([{k: v for k, v in r.items() if k not in ("identity", "kl")} for r in METRICS], (1, 2)),
        (METRICS[:1], (1, 3)),
        ([], (1, 2)),
    ],
)
def test_the_curve_has_a_panel_for_what_was_measured(tmp_path, rows, shape):
    with Image.open(plot_curve(rows, tmp_path / "curve.png", "a run")) as picture:
        assert picture.size == (750 * shape[1], 510 * shape[0])


def test_the_sheet_shows_every_clip_and_reference(tmp_path):
    path = clip_sheet(
        [PICTURES] * 2,
        [clip(120), clip(140)],
        [clip(160), clip(180)],
        tmp_path / "sheet.png",
        ["two wave"],
        [("1.0", "2.0")],
    )
    assert {(v,) * 3 for v in (120, 140, 160, 180, 90, 30)} <= colours(path)


def test_the_sheet_takes_any_frame_size(tmp_path):
    large = np.full((3, 240, 416, 3), 120, np.uint8)
    path = clip_sheet([PICTURES], [large], [large], tmp_path / "sheet.png", frames=5, frame_width=100)
    assert Image.open(path).width < 600


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_both_clips_move_together(tmp_path, suffix):
    frames, fps = read_clip(
        before_after(
            [PICTURES], [clip(120)], [np.concatenate([clip(160, 4), clip(200, 5)])], tmp_path / f"x{suffix}", fps=5
        )
    )
    assert len(frames) == 9 and fps == pytest.approx(5)
    early, late = ({tuple(c) for c in frames[t].reshape(-1, 3)} for t in (0, 8))
    assert (160, 160, 160) in early - late and (200, 200, 200) in late - early


def test_a_strip_shows_one_clip(tmp_path):
    path = frame_strip(
        PICTURES, clip(120), tmp_path / "strip.png", "a caption that is longer than the strip is wide " * 5
    )
    assert {(120,) * 3, (90,) * 3} <= colours(path)
