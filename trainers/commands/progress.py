"""How a command shows its progress: a bar on a terminal, lines in a file."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable

from tqdm import tqdm

from ..runs.progress import ProgressReport, duration

QUIET_SECONDS = 30.0
"""A file gets a line at least this often."""


class Bar:
    """Progress on one line of a terminal; of a run, the iteration in flight counts by its parts."""

    def __init__(self) -> None:
        self._reward = self._message = ""
        columns, rows = shutil.get_terminal_size()
        layout = "{percentage:3.0f}%|{bar}| {desc}"
        self._bar = tqdm(total=1.0, bar_format=layout, file=sys.stderr, ncols=columns - 1, nrows=rows, leave=True)

    def __call__(self, report: ProgressReport) -> None:
        if report.message != self._message:
            self._message = report.message
            if report.message:
                with contextlib.suppress(OSError):  # a closed terminal does not end a run
                    self._bar.write(f"note     {report.message}", sys.stderr)
        if "reward_mean" in report.metrics:
            self._reward = f", reward {report.metrics['reward_mean']:.3f}"
        iteration = min(report.iteration + 1, report.iterations)
        self.show(f"{iteration}/{report.iterations} {report.phase}{self._reward}{_left(report)}", report.fraction)

    def show(self, text: str, fraction: float) -> None:
        """`fraction` of the work is done, and what is being done."""
        self._bar.n = min(1.0, fraction)
        self._bar.set_description_str(text)

    def line(self, text: str) -> None:
        """A result, on standard output and above the bar."""
        self._bar.write(text, sys.stdout)

    def close(self) -> None:
        self._bar.close()


class Lines:
    """Progress in a file: one line per iteration, and in between one for every `quiet_seconds` without a line.

    A thread prints those in between, because a step of a slow machine may take longer. `notes`: print the run's
    messages as well, which its own log has already.
    """

    def __init__(self, quiet_seconds: float = QUIET_SECONDS, notes: bool = True) -> None:
        self._text, self._message, self._notes = "loading", "", notes
        self._quiet_seconds, self._printed = quiet_seconds, time.monotonic()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)
        self._thread.start()

    def __call__(self, report: ProgressReport) -> None:
        reward = report.metrics.get("reward_mean")
        phase = f", {report.phase}" if reward is None else f", reward {reward:.4f}"
        self._text = f"iteration {report.iteration}/{report.iterations}{phase}{_left(report)}"
        if self._notes and report.message != self._message:
            self._message = report.message
            if report.message:
                self._report(f"note: {report.message}")
        if report.metrics:
            self._report()

    def show(self, text: str, fraction: float) -> None:
        """`fraction` of the work is done, and what is being done."""
        self._text = f"{text} {fraction:.0%}"

    def line(self, text: str) -> None:
        """A result, on standard output."""
        self._print(text)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _repeat(self) -> None:
        while not self._closed.wait(max(0.0, self._printed + self._quiet_seconds - time.monotonic())):
            if time.monotonic() - self._printed >= self._quiet_seconds:
                self._report()

    def _report(self, text: str | None = None) -> None:
        """As `_print`; a reader of the pipe that has ended does not end a run."""
        with contextlib.suppress(OSError):
            self._print(text)

    def _print(self, text: str | None = None) -> None:
        self._printed = time.monotonic()
        print(f"{time.strftime('%H:%M:%S')} {text or self._text}", flush=True)


def open_display() -> Bar | Lines:
    """A bar where standard error is a terminal, else lines on standard output; to be closed."""
    return Bar() if sys.stderr is not None and sys.stderr.isatty() else Lines()


def counted(text: str, steps: int, show: Bar | Lines) -> Callable[[], None]:
    """A function to be called before each of so many steps: it shows how many are done."""
    done = 0

    def step() -> None:
        nonlocal done
        show.show(text, done / steps)
        done += 1

    return step


def quiet_libraries() -> None:
    """Turn off the progress bars of transformers and diffusers, which would break into ours while they load."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def _left(report: ProgressReport) -> str:
    return f", {duration(report.eta_seconds)} left" if report.eta_seconds is not None else ""
