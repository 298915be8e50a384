"""`demo`: the whole method in miniature, on whatever machine this is, in less than ten minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ..config import PolicyKind, TrainConfig, make_config, preset_for
from ..grpo.loop import Report
from ..runs.folder import RunFolder
from . import evaluate
from .progress import Bar, Lines, quiet_libraries
from .train import execute

NAMES: dict[PolicyKind, str] = {"vace": "VACE", "phantom": "Phantom"}
TRAINING_SECONDS = 430
"""A slow machine stops training here: what follows takes less than a minute and a half on two cores."""


def demo_config(changes: dict | None = None, policy: PolicyKind = "vace") -> TrainConfig:
    return make_config(preset_for("tiny", policy), {"iterations": 20, "evaluation": {"every": 4}} | (changes or {}))


def main(
    root: Path, changes: dict | None = None, seconds: float = TRAINING_SECONDS, policy: PolicyKind = "vace"
) -> int:
    """Train TinyWorld's policy, then show what became better and where everything is."""
    import sys

    quiet_libraries()
    started = time.monotonic()
    run = RunFolder.create(root, demo_config(changes, policy), "demo")
    print(
        f"Identity-GRPO in TinyWorld: drawn people, a small {NAMES[policy]} policy that sometimes swaps, blends or loses them,\n"
        f"and a learned identity reward. {run.config().iterations} iterations of {_rollouts(run.config())} videos.\n{run.path}\n",
        flush=True,
    )
    result = execute(run, False, _within(seconds, run, Bar() if sys.stderr.isatty() else Lines()))
    if result.state == "stopped":
        print(f"stopped at iteration {result.iteration}; `resume {run.id}` goes on from there")
    found = evaluate.evaluate(run, evaluate.newest_export(run))
    print("\n" + evaluate.table(evaluate.rows(found)) + "\n")
    for line in (*evaluate.sentences(found), *evaluate.files_told(found)):
        print(line)
    print(f"\n{time.monotonic() - started:.0f} seconds in all")
    return 0


def _rollouts(config: TrainConfig) -> int:
    return config.rollout.groups * config.rollout.group_size


def _within(seconds: float, run: RunFolder, show: Callable[[Report], None]) -> Callable[[Report], None]:
    """`show`, and a request to stop when the time is used up."""
    started = time.monotonic()

    def tell(report: Report) -> None:
        show(report)
        if time.monotonic() - started > seconds and report.metrics and report.iteration < report.iterations:
            run.request("stop")

    return tell
