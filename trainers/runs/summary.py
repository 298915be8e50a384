"""A run in words and pictures, for whoever looks on."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from ..clips import read_clip
from ..errors import UserError
from .folder import RunFolder
from .registry import refresh
from .table import duration

CLIPS = 4
DARK = 32


def sentence(run: RunFolder) -> str:
    """Its state in one line."""
    status = refresh(run)
    line = f"{run.id}: {status['state']}, iteration {status.get('iteration', 0)} of {status.get('iterations', '?')}"
    if status["state"] == "running" and status.get("phase"):
        done = status.get("phase_done")
        line += f", {status['phase']}" + (f" {done:.0%}" if done else "")
    if status["state"] == "running" and status.get("eta_seconds") is not None:
        line += f", {duration(status['eta_seconds'])} left"
    return line


def summary(run: RunFolder) -> str:
    """Its state, what the last evaluation measured, and what went wrong, a line each."""
    status = refresh(run)
    lines = [sentence(run)]
    held_out = [row for row in run.read_metrics() if row.get("kind") == "evaluation" and row.get("win") is not None]
    if held_out and held_out[-1]["iteration"]:
        last, first = held_out[-1], held_out[0]
        lines.append(
            f"at iteration {last['iteration']} it wins {last['win']:.0%} of the held-out pairs against the untouched "
            f"policy (95% interval {last['win_low']:.0%} to {last['win_high']:.0%}), reward {last['margin']:+.2f}"
        )
        if last.get("identity") is not None and first.get("identity"):
            lines.append(f"the drawn world's own measure of identity: {last['identity'] / first['identity'] - 1:+.1%}")
    lines += [status[name] for name in ("message", "last_error") if status.get(name)]
    if status["state"] in ("failed", "stopped"):
        lines.append("Resume goes on from its last checkpoint.")
    return "\n".join(lines)


def curve(run: RunFolder) -> np.ndarray:
    """The curve uint8 [H, W, 3]; a dark field until something is measured."""
    rows = run.read_metrics()
    if not rows:
        return np.full((DARK, DARK, 3), DARK, np.uint8)
    from .report import plot_curve

    with tempfile.TemporaryDirectory() as folder:
        return read_clip(plot_curve(rows, Path(folder) / "curve.png", run.id))[0][0]


def newest_clips(run: RunFolder) -> np.ndarray:
    """The first held-out clips, as last drawn, side by side: uint8 [F, H, W, 3]; one dark frame until there are any."""
    for folder in sorted((p for p in run.samples.glob("*") if p.is_dir()), reverse=True):
        try:
            clips = [read_clip(path)[0] for path in sorted(folder.glob("*.webp"))[:CLIPS]]
        except UserError:
            continue  # being written just now
        if clips:
            frames = min(map(len, clips))
            return np.concatenate([clip[:frames] for clip in clips], axis=2)
    return np.full((1, DARK, DARK, 3), DARK, np.uint8)
