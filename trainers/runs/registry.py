"""The runs under one folder, and how they stand."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ..errors import UserError
from ..processes import alive, host, reap, suspended
from .devices import hold_runs
from .folder import RUN_ID, RunFolder, is_run
from .heartbeat import silence
from .status import RunStatus


def list_runs(root: str | Path) -> list[RunFolder]:
    """All runs under `root`, oldest first."""
    root = Path(root)
    folders = [p for p in root.iterdir() if RUN_ID.fullmatch(p.name) and is_run(p)] if root.is_dir() else []
    runs = []
    for path in sorted(folders, key=lambda p: (p.name.split("-")[-3:], p.name)):
        # It may be deleted between the listing and the reading.
        with contextlib.suppress(UserError):
            runs.append(RunFolder(path))
    return runs


def latest(root: str | Path) -> RunFolder:
    """The newest run. Raises UserError when there is none."""
    runs = list_runs(root)
    if not runs:
        raise UserError(
            f"there are no runs in {Path(root).absolute()}; start one with `train`, or name another folder with --runs"
        )
    return runs[-1]


def find(root: str | Path, text: str) -> RunFolder:
    """The run with this id, an unambiguous beginning of one, `latest`, or a path of a run's folder. Raises
    UserError."""
    if text == "latest":
        return latest(root)
    runs = list_runs(root)
    exact = [r for r in runs if r.id == text]
    found = exact or [r for r in runs if r.id.startswith(text)]
    if len(found) == 1:
        return found[0]
    if len(found) > 1:
        raise UserError(f"`{text}` may be any of {', '.join(r.id for r in found)}; write more of the id")
    with contextlib.suppress(OSError, ValueError):
        if is_run(text):
            return RunFolder(text)
    known = f"there are {', '.join(r.id for r in runs[-5:])}" if runs else "there are no runs there"
    raise UserError(f"no run `{text}` in {Path(root).absolute()}: {known}")


def refresh(run: RunFolder) -> RunStatus:
    """The run's status; a run whose process has exited becomes `failed` with the end of its log, and one whose process
    lives but gives no sign of life is `hung`.

    Of a run on another machine the status is taken as it is: its processes cannot be seen from here.
    """
    reap()
    status = run.status()
    if not _died(status):
        return _unless_hung(run, status)
    # It may have ended well between reading the status and looking for the process.
    status = run.status()
    if not _died(status):
        return _unless_hung(run, status)
    tail = run.log_tail()
    error = f"process {status.pid} has exited" + (f"; the end of its log:\n{tail}" if tail else "")
    failed = {"state": "failed", "last_error": error}
    # A caller without write access, or with a full disk, gets the same answer. While another program starts a run, it
    # may be this one: its new process must not be reported as failed.
    with contextlib.suppress(OSError, UserError), hold_runs(run.path.parent, wait=0):
        if _died(run.status()):
            run.set_status(**failed)
    return status.model_copy(update=failed)


def is_alive(run: RunFolder) -> bool:
    return refresh(run).active


def _died(status: RunStatus) -> bool:
    return status.active and _is_here(status) and not alive(status.pid, status.pid_started)


def _unless_hung(run: RunFolder, status: RunStatus) -> RunStatus:
    if not (status.active and _is_here(status)):
        return status
    if suspended(status.pid):
        message = f"its process {status.pid} is suspended; `kill -CONT {status.pid}` continues it, Stop ends it"
    elif (sign := silence(run, status)) is not None:
        message = f"its process {status.pid} {sign}; Stop ends it by force"
    else:
        return status
    return status.model_copy(update={"state": "hung", "message": message})


def _is_here(status: RunStatus) -> bool:
    return status.host in ("", host())
