"""`demo`: the whole method in miniature, on whatever machine this is."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from contextlib import closing
from typing import Any

from ..config import PolicyKind, TrainConfig, make_config, preset_for
from ..errors import command_line
from ..runs.folder import RunFolder
from ..runs.progress import ProgressReport, duration
from .options import add_runs_folder, add_tinyworld_policy
from .progress import Bar, Lines, open_display, quiet_libraries
from .tables import markdown_table
from .training import STOPPED, check_devices, execute

NAMES: dict[PolicyKind, str] = {"vace": "VACE", "phantom": "Phantom"}


def add_arguments(parser: ArgumentParser) -> None:
    add_tinyworld_policy(parser)
    add_runs_folder(parser)


def demo_config(changes: dict[str, Any] | None = None, policy: PolicyKind = "vace") -> TrainConfig:
    return make_config(preset_for("tiny", policy), {"iterations": 20, "evaluation": {"every": 5}} | (changes or {}))


def main(options: Namespace, changes: dict[str, Any] | None = None) -> int:
    """Train TinyWorld's policy, then print what improved and where everything is; 130 when it was stopped."""
    from . import evaluate

    quiet_libraries()
    config = demo_config(changes, options.policy)
    check_devices(options.runs, config)
    started = time.monotonic()
    run = RunFolder.create(options.runs, config, "demo")
    config = run.config()
    videos = config.rollout.groups * config.rollout.group_size
    print(
        f"Identity-GRPO in TinyWorld: rendered people, a small {NAMES[options.policy]} policy that sometimes swaps, "
        f"blends or loses them,\nand a learned identity reward. {config.iterations} iterations of {videos} videos.\n"
        f"{run.path}\n",
        flush=True,
    )
    with closing(open_display()) as show:
        result = execute(run, False, _Estimate(show, config))
        if result.state == "finished":
            found = evaluate.evaluate(run, evaluate.newest_export(run), show)
    if result.state != "finished":
        print(f"stopped after {result.iteration} of {config.iterations} iterations")
        print(f"continue {command_line('resume', run.path)}")
        return STOPPED
    print("\n" + markdown_table(evaluate.rows(found)) + "\n")
    for line in (*evaluate.sentences(found), *evaluate.file_lines(found)):
        print(line)
    print(f"\n{duration(time.monotonic() - started)} in all")
    return 0


class _Estimate:
    """A display of the training; after the first iteration a line with the time that all the rest will take."""

    def __init__(self, show: Bar | Lines, config: TrainConfig) -> None:
        self._show = show
        self._evaluations = evaluations_in_iterations(config)

    def __call__(self, report: ProgressReport) -> None:
        if report.metrics and report.iteration == 1 and report.eta_seconds is not None:
            each = report.eta_seconds / max(1, report.iterations - 1)
            rest = duration(report.eta_seconds + each * self._evaluations)
            print(f"\nthis machine needs about {rest} for the rest", flush=True)
        self._show(report)


def evaluations_in_iterations(config: TrainConfig) -> float:
    """The demo's evaluations after the first iteration, as a number of iterations that take as long.

    A held-out video is taken to cost what a trained one does. At the end both policies are evaluated.
    """
    done = range(2, config.iterations + 1)
    count = sum(iteration % config.evaluation.every == 0 or iteration == config.iterations for iteration in done)
    return (count + 2) * config.evaluation.items / (config.rollout.groups * config.rollout.group_size)
