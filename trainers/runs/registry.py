"""The runs under one folder, and what has become of them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ..errors import UserError
from .folder import RUN_ID, RunFolder
from .processes import alive, reap

ALIVE = ("starting", "running", "stopping")


def list_runs(root: str | Path) -> list[RunFolder]:
    """All runs under `root`, oldest first."""
    root = Path(root)
    folders = (
        [p for p in root.iterdir() if RUN_ID.fullmatch(p.name) and (p / "config.yaml").is_file()]
        if root.is_dir()
        else []
    )
    return [RunFolder(p) for p in sorted(folders, key=lambda p: (p.name.split("-")[-3:], p.name))]


def latest(root: str | Path) -> RunFolder:
    """The newest run. Raises UserError when there is none."""
    runs = list_runs(root)
    if not runs:
        raise UserError(
            f"there are no runs in {Path(root).absolute()}; start one with `train`, or name another folder with --runs"
        )
    return runs[-1]


def find(root: str | Path, text: str) -> RunFolder:
    """The run with this id, an unambiguous beginning of one, `latest`, or a path of a run's folder. Raises UserError."""
    if text == "latest":
        return latest(root)
    runs = list_runs(root)
    exact = [r for r in runs if r.id == text]
    found = exact or [r for r in runs if r.id.startswith(text)]
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        raise UserError(f"`{text}` may be any of {', '.join(r.id for r in found)}; write more of the id")
    if (Path(text) / "config.yaml").is_file():
        return RunFolder(text)
    known = f"there are {', '.join(r.id for r in runs[-5:])}" if runs else "there are no runs there"
    raise UserError(f"no run `{text}` in {Path(root).absolute()}: {known}")


def refresh(run: RunFolder) -> dict[str, Any]:
    """The run's status; a run whose process is gone becomes `failed` with the end of its log, never `running` for ever."""
    reap()
    status = run.status()
    if status["state"] not in ALIVE or alive(status.get("pid"), status.get("pid_started")):
        return status
    # It may have ended well between the two looks.
    status = run.status()
    if status["state"] in ALIVE:
        tail = run.log_tail()
        status |= {
            "state": "failed",
            "last_error": f"process {status.get('pid')} is gone" + (f"; its last words:\n{tail}" if tail else ""),
        }
        # Whoever may only look, or finds the disk full, is told as well.
        with contextlib.suppress(OSError, UserError):
            run.set_status(state=status["state"], last_error=status["last_error"])
    return status


def is_alive(run: RunFolder) -> bool:
    return refresh(run)["state"] in ALIVE
