"""A run's progress: a bar where somebody looks on, lines in a file."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    from ..grpo.loop import Report


class Bar:
    """Progress on a terminal: the iteration in flight counts by its parts."""

    def __init__(self) -> None:
        form = "{percentage:3.0f}% {bar:30} {desc} {postfix}"
        self.bar = tqdm(total=100, bar_format=form, file=sys.stderr, dynamic_ncols=True)
        self.reward = ""

    def __call__(self, report: Report) -> None:
        if "reward_mean" in report.metrics:
            self.reward = f", reward {report.metrics['reward_mean']:.3f}"
        self.show(report.iteration, report.iterations, report.phase, report.fraction, report.eta_seconds)

    def show(self, iteration: int, iterations: int, phase: str, fraction: float, eta: float | None) -> None:
        left = f", {duration(eta)} left" if eta is not None else ""
        self.bar.n = round(100 * fraction, 1)
        self.bar.set_description_str(f"{min(iteration + 1, iterations)}/{iterations} {phase}{self.reward}{left}", refresh=False)
        self.bar.refresh()

    def close(self) -> None:
        self.bar.close()


class Lines:
    """Progress in a log: one line an iteration."""

    def __call__(self, report: Report) -> None:
        if report.metrics:
            left = f", {duration(report.eta_seconds)} left" if report.eta_seconds is not None else ""
            reward = report.metrics.get("reward_mean")
            told = f", reward {reward:.4f}" if reward is not None else ""
            print(f"{time.strftime('%H:%M:%S')} iteration {report.iteration}/{report.iterations}{told}{left}", flush=True)

    def close(self) -> None:
        pass


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `2 h 7 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
