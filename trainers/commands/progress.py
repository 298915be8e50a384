"""A run's progress: a bar on a terminal, lines in a file."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from ..runs.progress import ProgressReport, duration

QUIET_SECONDS = 30.0
"""A log gets a line at least this often while something goes on."""


class Bar:
    """Progress on a terminal, on one line: the iteration in flight counts by its parts."""

    def __init__(self) -> None:
        self.reward = ""
        layout = "{percentage:3.0f}%|{bar}| {desc}"
        self.bar = tqdm(total=1.0, bar_format=layout, file=sys.stderr, dynamic_ncols=True, leave=True)

    def __call__(self, report: ProgressReport) -> None:
        if "reward_mean" in report.metrics:
            self.reward = f", reward {report.metrics['reward_mean']:.3f}"
        self.show(report.iteration, report.iterations, report.phase, report.fraction, report.eta_seconds)

    def show(self, iteration: int, iterations: int, phase: str, fraction: float, eta: float | None) -> None:
        """Redraw the line; `eta` in seconds, None while it is not known."""
        left = f", {duration(eta)} left" if eta is not None else ""
        self.bar.n = min(1.0, fraction)
        self.bar.set_description_str(f"{min(iteration + 1, iterations)}/{iterations} {phase}{self.reward}{left}")

    def close(self) -> None:
        self.bar.close()


class Lines:
    """Progress in a log: one line per iteration, and every half minute how far the one in flight is."""

    def __init__(self) -> None:
        self.printed = time.monotonic()

    def __call__(self, report: ProgressReport) -> None:
        if not report.metrics and time.monotonic() - self.printed < QUIET_SECONDS:
            return
        self.printed = time.monotonic()
        left = f", {duration(report.eta_seconds)} left" if report.eta_seconds is not None else ""
        reward = report.metrics.get("reward_mean")
        said = f", reward {reward:.4f}" if reward is not None else "" if report.metrics else f", {report.phase}"
        print(f"{time.strftime('%H:%M:%S')} iteration {report.iteration}/{report.iterations}{said}{left}", flush=True)

    def close(self) -> None:
        pass


def quiet_libraries() -> None:
    """Without the progress bars of transformers and diffusers, which would break into ours while they load."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
