"""A run's progress: a bar where somebody looks on, lines in a file."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING

from ..runs.table import duration

if TYPE_CHECKING:
    from ..grpo.loop import Report

WIDTH = 30


class Bar:
    """Progress on a terminal, on one line: the iteration in flight counts by its parts."""

    def __init__(self) -> None:
        self.reward = ""

    def __call__(self, report: Report) -> None:
        if "reward_mean" in report.metrics:
            self.reward = f", reward {report.metrics['reward_mean']:.3f}"
        self.show(report.iteration, report.iterations, report.phase, report.fraction, report.eta_seconds)

    def show(self, iteration: int, iterations: int, phase: str, fraction: float, eta: float | None) -> None:
        """Draw over the last line; `eta` in seconds, None while it is not known."""
        left = f", {duration(eta)} left" if eta is not None else ""
        filled = round(WIDTH * fraction)
        line = f"{'#' * filled}{'.' * (WIDTH - filled)} {fraction:4.0%}  {min(iteration + 1, iterations)}/{iterations} {phase}{self.reward}{left}"
        columns = shutil.get_terminal_size((100, 24)).columns
        print(f"\r\x1b[K{line[: columns - 1]}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        print(file=sys.stderr)


class Lines:
    """Progress in a log: one line an iteration."""

    def __call__(self, report: Report) -> None:
        if report.metrics:
            left = f", {duration(report.eta_seconds)} left" if report.eta_seconds is not None else ""
            reward = report.metrics.get("reward_mean")
            told = f", reward {reward:.4f}" if reward is not None else ""
            print(
                f"{time.strftime('%H:%M:%S')} iteration {report.iteration}/{report.iterations}{told}{left}", flush=True
            )

    def close(self) -> None:
        pass


def quiet_libraries() -> None:
    """Without the bars that transformers and diffusers draw over ours while they load."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
