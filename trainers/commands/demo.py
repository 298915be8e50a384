"""`demo`: the whole method in miniature, on whatever machine this is."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any

from ..config import PolicyKind, TrainConfig, make_config, preset_for
from ..runs.folder import RunFolder
from ..runs.progress import ProgressReport, duration
from .attend import execute, refuse_busy_device
from .options import add_runs_folder, add_tinyworld_policy
from .progress import Bar, Lines, quiet_libraries
from .tables import markdown_table

NAMES: dict[PolicyKind, str] = {"vace": "VACE", "phantom": "Phantom"}


def add_arguments(parser: ArgumentParser) -> None:
    add_tinyworld_policy(parser)
    add_runs_folder(parser)


def demo_config(changes: dict[str, Any] | None = None, policy: PolicyKind = "vace") -> TrainConfig:
    return make_config(preset_for("tiny", policy), {"iterations": 20, "evaluation": {"every": 4}} | (changes or {}))


def main(options: Namespace, changes: dict[str, Any] | None = None) -> int:
    """Train TinyWorld's policy, then show what became better and where everything is."""
    from . import evaluate

    quiet_libraries()
    refuse_busy_device()
    started = time.monotonic()
    run = RunFolder.create(options.runs, demo_config(changes, options.policy), "demo")
    config = run.config()
    videos = config.rollout.groups * config.rollout.group_size
    print(
        f"Identity-GRPO in TinyWorld: rendered people, a small {NAMES[options.policy]} policy that sometimes swaps, blends "
        f"or loses them,\nand a learned identity reward. {config.iterations} iterations of {videos} videos.\n{run.path}\n",
        flush=True,
    )
    result = execute(run, False, _with_estimate(Bar() if sys.stderr.isatty() else Lines()))
    if result.state == "stopped":
        print(f"stopped at iteration {result.iteration}; `resume {run.id}` continues from there")
    found = evaluate.evaluate(run, evaluate.newest_export(run))
    print("\n" + markdown_table(evaluate.rows(found)) + "\n")
    for line in (*evaluate.sentences(found), *evaluate.file_lines(found)):
        print(line)
    print(f"\n{duration(time.monotonic() - started)} in all")
    return 0


def _with_estimate(show: Callable[[ProgressReport], None]) -> Callable[[ProgressReport], None]:
    """`show`, and after the first iteration a line that says how long the demo will take on this machine."""

    def report(progress: ProgressReport) -> None:
        if progress.metrics and progress.iteration == 1 and progress.eta_seconds is not None:
            print(f"\nthis machine needs about {duration(progress.eta_seconds)} for the rest", flush=True)
        show(progress)

    return report
