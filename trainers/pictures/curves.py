"""The metrics of a run as one picture of curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_file
from .layout import BLUE, FAINT, GREEN, INK, ORANGE, PAPER, PURPLE


def plot_curve(metrics: Sequence[Mapping[str, Any]], path: str | Path, title: str = "") -> Path:
    """Write rows of metrics.jsonl as a PNG: reward, win rate with its 95% interval, and where the rows have them the
    other rewards, the judge and the KL to the base policy. Of a run that trains a reward: accuracy and loss.
    """
    from matplotlib.figure import Figure

    train = [row for row in metrics if row.get("kind") == "train"]
    held_out = [row for row in metrics if row.get("kind") == "evaluation"]
    of_reward = any("preference_loss" in row for row in metrics)
    panels = [_accuracy_panel, _loss_panel] if of_reward else [_reward_panel, _win_rate_panel]
    panels += [_other_rewards_panel] if _other_rewards(train) else []
    panels += [_judge_panel] if any(row.get("identity") is not None for row in held_out) else []
    panels += [_kl_panel] if any(row.get("kl") is not None for row in train) else []
    rows, columns = (2, (len(panels) + 1) // 2) if len(panels) > 3 else (1, len(panels))
    figure = Figure(figsize=(5 * columns, 3.4 * rows), dpi=150, facecolor=PAPER, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    places = figure.subplots(rows, columns).flat
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    for axes, plot in zip(places, panels, strict=False):
        _style(axes)
        plot(axes, train, held_out)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="best")
    if title:
        figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, sync=False) as aside:
        figure.savefig(aside, format="png")
    return path


def _reward_panel(axes, train: list, held_out: list) -> None:
    axes.set_title("reward", **_TITLE)
    if train:
        x, y = _series(train, "reward_mean")
        axes.plot(x, y, color=BLUE, alpha=0.25, linewidth=1)
        axes.plot(x, _smooth(y), color=BLUE, linewidth=1.8, label="training rollouts")
    x, y = _series(held_out, "reward_mean")
    axes.plot(x, y, color=ORANGE, linewidth=1.8, marker="o", markersize=4, label="held-out items")


def _other_rewards(train: list) -> list[str]:
    """Names of the rewards beside the identity reward."""
    names = {name for row in train for name in row if name.startswith("reward_")}
    return sorted(names - {"reward_mean", "reward_std_in_group"})


def _other_rewards_panel(axes, train: list, held_out: list) -> None:
    axes.set_title("other rewards, training rollouts", **_TITLE)
    for name, colour in zip(_other_rewards(train), (BLUE, ORANGE, GREEN, PURPLE), strict=False):
        x, y = _series(train, name)
        axes.plot(x, y, color=colour, alpha=0.25, linewidth=1)
        axes.plot(x, _smooth(y), color=colour, linewidth=1.8, label=name.removeprefix("reward_").replace("_", "-"))


def _win_rate_panel(axes, train: list, held_out: list) -> None:
    axes.set_title("win rate on held-out items against the base policy", **_TITLE)
    measured = [row for row in held_out if row["iteration"] > 0]
    x, y = _series(measured, "win")
    if len(x):
        low, high = _series(measured, "win_low")[1], _series(measured, "win_high")[1]
        axes.fill_between(x, low, high, color=GREEN, alpha=0.15, linewidth=0, label="95% interval")
        axes.plot(x, y, color=GREEN, linewidth=1.8, marker="o", markersize=4)
    axes.axhline(0.5, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _judge_panel(axes, train: list, held_out: list) -> None:
    of_tinyworld = any(row.get("alignment") is not None for row in held_out)
    axes.set_title("oracle (TinyWorld)" if of_tinyworld else "face report", **_TITLE)
    for name, colour in (("identity", PURPLE), ("alignment", FAINT)):
        x, y = _series(held_out, name)
        if len(x):
            axes.plot(x, y, color=colour, linewidth=1.8, marker="o", markersize=4, label=f"{name} (never trained on)")


def _kl_panel(axes, train: list, held_out: list) -> None:
    axes.set_title("KL to the base policy", **_TITLE)
    x, y = _series(train, "kl")
    axes.plot(x, y, color=INK, alpha=0.25, linewidth=1)
    axes.plot(x, _smooth(y), color=INK, linewidth=1.8)


def _accuracy_panel(axes, train: list, held_out: list) -> None:
    axes.set_title("accuracy on held-out pairs", **_TITLE)
    for name, colour, label in (
        ("accuracy", GREEN, "without ties"),
        ("accuracy_with_ties", FAINT, "ties predicted too"),
    ):
        x, y = _series(held_out, name)
        axes.plot(x, y, color=colour, linewidth=1.8, marker="o", markersize=4, label=label)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _loss_panel(axes, train: list, held_out: list) -> None:
    axes.set_title("preference loss", **_TITLE)
    x, y = _series(train, "preference_loss")
    axes.plot(x, y, color=BLUE, alpha=0.25, linewidth=1)
    axes.plot(x, _smooth(y), color=BLUE, linewidth=1.8, label="training pairs")
    x, y = _series(held_out, "preference_loss")
    axes.plot(x, y, color=ORANGE, linewidth=1.8, marker="o", markersize=4, label="held-out pairs")


_TITLE = {"fontsize": 9.5, "color": INK, "loc": "left", "pad": 8}


def _style(axes) -> None:
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
    """Moving average over a tenth of the run, shorter at its ends."""
    half = max(1, len(values) // 20)
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])
