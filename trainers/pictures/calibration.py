"""A calibration curve: how often predictions of a probability came true."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..files import atomic_file
from .layout import BLUE, FAINT, INK, PAPER


def plot_calibration(points: Sequence[tuple[float, float, int]], path: str | Path, error: float) -> Path:
    """Write (predicted probability, share that came true, number of predictions) of each bin as a PNG.

    `error`: the expected calibration error, for the title.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.4), dpi=150, facecolor=PAPER, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label="perfect")
    most = max((count for *_, count in points), default=1)
    sizes = [20 + 180 * count / most for *_, count in points]
    x, y = [p for p, _, _ in points], [o for _, o, _ in points]
    axes.plot(x, y, color=BLUE, linewidth=1.6)
    axes.scatter(x, y, s=sizes, color=BLUE, zorder=3, label="this reward (area: how many)")
    axes.set_title(f"calibration on held-out pairs, error {error:.3f}", fontsize=9.5, color=INK, loc="left", pad=8)
    axes.set_xlabel("predicted probability (A better, tie, B better)", fontsize=8.5, color=INK)
    axes.set_ylabel("share that came true", fontsize=8.5, color=INK)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.tick_params(colors=FAINT, labelsize=8, labelcolor=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper left")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, sync=False) as aside:
        figure.savefig(aside, format="png")
    return path
