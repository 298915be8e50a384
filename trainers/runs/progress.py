"""A run's progress: what is done, and how long the rest takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .folder import RunFolder

ROLLOUT_SHARE = 0.7
"""Part of an iteration's time that its rollouts take, roughly: until the first iteration has been timed."""
RECENT = 5  # iterations over which the time left is averaged


@dataclass(frozen=True)
class ProgressReport:
    """Where a run stands: `fraction` of the run that is done, seconds left (None: not known yet).

    `metrics` are those of the iteration that has just ended, empty in between. `message`: what the user should know.
    """

    iteration: int
    iterations: int
    phase: str
    fraction: float
    eta_seconds: float | None
    metrics: dict[str, float] = field(default_factory=dict)
    message: str = ""


class Progress:
    """Measures iterations, writes the run's status and calls `report` after every step of a phase.

    `typical`: whether an iteration as long as the longest has been timed; before that, silence does not mean that the
    process hangs. `compiling`: phases whose first step has still to compile the policy's blocks, which takes minutes
    without a report.
    """

    def __init__(self, run: RunFolder, iterations: int, report: Callable[[ProgressReport], None]) -> None:
        self.run, self.iterations, self.report = run, iterations, report
        self.durations: list[float] = []
        self.shares: list[float] = []
        self.began = 0.0
        self.message = self.phase = ""
        self.typical = True
        self.compiling: set[str] = set()

    def begin(self) -> None:
        """An iteration begins."""
        self.began = time.perf_counter()

    def end(self, rollout_seconds: float, update_seconds: float) -> None:
        """An iteration has ended, its evaluation and checkpoint included."""
        self.durations.append(time.perf_counter() - self.began)
        self.shares.append(rollout_seconds / max(1e-9, rollout_seconds + update_seconds))

    def update(self, iteration: int, phase: str, within: float = 0.0, metrics: dict[str, float] | None = None) -> None:
        """`iteration` iterations are done, and the fraction `within` of the phase of the next one."""
        if phase != self.phase:
            self.compiling.discard(self.phase)
        if within:
            self.compiling.discard(phase)
        self.phase = phase
        shown = f"{phase}, compiling" if phase in self.compiling else phase
        share = self.shares[-1] if self.shares else ROLLOUT_SHARE
        part = {"rollouts": share * within, "update": share + (1 - share) * within}.get(phase, 0.0)
        done = min(self.iterations, iteration + part)
        eta = self._seconds_left(self.iterations - done, part)
        self.run.set_status(
            state="running",
            iteration=iteration,
            iterations=self.iterations,
            phase=shown,
            phase_done=within,
            eta_seconds=eta,
            slowest_seconds=max(self.durations, default=None) if self.typical else None,
            message=self.message,
        )
        fraction = done / self.iterations
        self.report(ProgressReport(iteration, self.iterations, shown, fraction, eta, metrics or {}, self.message))

    def _seconds_left(self, iterations: float, part: float) -> float | None:
        """From the last iterations, or from the part of the first one that is done; None before that."""
        recent = self.durations[-RECENT:]
        if recent:
            return sum(recent) / len(recent) * iterations
        return (time.perf_counter() - self.began) / part * iterations if part else None


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `2 h 7 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes} min {seconds} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
