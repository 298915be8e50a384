"""`runs`: what has been trained here, without torch."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ..runs import launcher
from ..runs.folder import RunFolder
from ..runs.registry import find, list_runs, refresh
from ..runs.table import duration, table


def main(action: str, root: Path, run: str, wait: float) -> int:
    if action == "list":
        return _list(root)
    found = find(root, run)
    return _show(found) if action == "show" else _stop(found, wait)


def _list(root: Path) -> int:
    runs = list_runs(root)
    print(table([_row(run) for run in runs]) if runs else f"no runs in {root.absolute()}")
    return 0


def _row(run: RunFolder) -> dict[str, Any]:
    status = refresh(run)
    left = status.get("eta_seconds") if status["state"] == "running" else None
    return {
        "run": run.id,
        "state": status["state"],
        "iteration": f"{status.get('iteration', 0)}/{status.get('iterations', '?')}",
        "held-out wins": _wins(run),
        "left": duration(left) if left is not None else "",
        "updated": _ago(status.get("updated")),
    }


def _show(run: RunFolder) -> int:
    status = refresh(run)
    config = run.config()
    print(
        f"{run.id}: {status['state']}, iteration {status.get('iteration', 0)} of {config.iterations}, updated {_ago(status.get('updated'))}"
    )
    print(f"folder   {run.path}")
    print(
        f"trains   {config.policy.source} by {config.reward.source} on {config.prompts}, preset {config.preset}, seed {config.seed}"
    )
    for name in ("message", "last_error"):
        if status.get(name):
            print(f"{name.replace('_', ' ')}: {status[name]}")
    held_out = [row for row in run.read_metrics() if row.get("kind") == "evaluation"]
    if held_out:
        names = ("iteration", "reward_mean", "win", "tie", "loss", "margin", "identity", "alignment")
        print("\n" + table([{n: row[n] for n in names if row.get(n) is not None} for row in held_out[-5:]]))
    exports = sorted(run.exports.glob("*.safetensors"))
    if exports:
        print(f"\nLoRA     {exports[-1]}")
    return 0


def _stop(run: RunFolder, wait: float) -> int:
    print(f"{run.id}: {launcher.stop(run, wait)}")
    return 0


def _wins(run: RunFolder) -> str:
    won = [row["win"] for row in run.read_metrics() if row["iteration"] > 0 and row.get("win") is not None]
    return f"{won[-1]:.0%}" if won else ""


def _ago(updated: float | None) -> str:
    return f"{duration(max(0.0, time.time() - updated))} ago" if updated else ""
