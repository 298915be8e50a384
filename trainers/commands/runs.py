"""`runs`: list runs, show one, stop one; without torch."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..runs import launcher
from ..runs.folder import RunFolder
from ..runs.progress import duration
from ..runs.registry import find, list_runs, refresh
from ..runs.summary import sentence
from .numbers import number_between
from .options import RUN_HELP, add_runs_folder
from .tables import markdown_table

LONGEST_WAIT = 86_400.0


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "action", nargs="?", choices=["list", "show", "stop"], default="list", help="what to do (default: list)"
    )
    parser.add_argument("run", nargs="?", default="latest", help=f"for show and stop: {RUN_HELP}")
    parser.add_argument(
        "--wait",
        type=number_between(0, LONGEST_WAIT, float),
        default=60.0,
        help="stop: seconds before the run is ended by force (default: 60)",
    )
    add_runs_folder(parser)


def main(options: Namespace) -> int:
    if options.action == "list":
        return _list(options.runs)
    run = find(options.runs, options.run)
    return _show(run) if options.action == "show" else _stop(run, options.wait)


def _list(root: Path) -> int:
    runs = list_runs(root)
    print(markdown_table([_row(run) for run in runs]) if runs else f"no runs in {root.absolute()}")
    return 0


def _row(run: RunFolder) -> dict[str, Any]:
    status = refresh(run)
    left = status.eta_seconds if status.state == "running" else None
    return {
        "run": run.id,
        "state": status.state,
        "iteration": f"{status.iteration}/{'?' if status.iterations is None else status.iterations}",
        "win rate": _win_rate(run),
        "left": duration(left) if left is not None else "",
        "updated": _ago(status.updated),
    }


def _show(run: RunFolder) -> int:
    status = refresh(run)
    print(f"{sentence(run)}, updated {_ago(status.updated)}")
    print(f"folder   {run.path}")
    try:
        config = run.config()
    except UserError as error:
        print(f"settings {error}")
    else:
        print(
            f"trains   {config.policy.source} by {config.reward.source} on {config.prompts}, preset {config.preset}, "
            f"seed {config.seed}"
        )
    for name in ("message", "last_error"):
        if text := getattr(status, name):
            print(f"{name.replace('_', ' ')}: {text}")
    if evaluations := run.evaluations():
        names = ("iteration", "reward_mean", "win", "tie", "loss", "margin", "identity", "alignment")
        print("\n" + markdown_table([{n: row[n] for n in names if row.get(n) is not None} for row in evaluations[-5:]]))
    if newest := run.newest():
        print(f"\nLoRA     {newest.path}")
    return 0


def _stop(run: RunFolder, wait: float) -> int:
    print(f"{run.id}: {launcher.stop(run, wait)}")
    return 0


def _win_rate(run: RunFolder) -> str:
    rates = [row["win"] for row in run.evaluations() if row["iteration"] > 0]
    return f"{rates[-1]:.0%}" if rates else ""


def _ago(updated: float | None) -> str:
    return f"{duration(max(0.0, time.time() - updated))} ago" if updated else ""
