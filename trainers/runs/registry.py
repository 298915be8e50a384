"""The runs under one folder, and how they stand."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from ..errors import UserError
from ..processes import alive, host, reap, suspended
from .devices import hold_runs
from .folder import RUN_ID, RunFolder, is_run
from .heartbeat import ELSEWHERE_SECONDS, last_sign, silence
from .progress import duration
from .status import RunStatus, waiting_ended, waits_for_machines


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


def misnamed(root: str | Path) -> list[Path]:
    """Folders under `root` that hold a run and are not listed: their name cannot be an id."""
    root = Path(root)
    return sorted(p for p in root.iterdir() if not RUN_ID.fullmatch(p.name) and is_run(p)) if root.is_dir() else []


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
    if not text.strip():
        raise UserError("the run's id is empty; give an id, the beginning of one, a folder, or `latest`")
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

    Processes on another machine cannot be seen from here: a run there is `hung` when its files have not changed for two
    minutes. A copy of a folder whose run trains has `failed`: the process is not the copy's.
    """
    reap()
    status = run.status()
    if not _died(run, status):
        return _unless_hung(run, status)
    # It may have ended well between reading the status and looking for the process.
    status = run.status()
    if not _died(run, status):
        return _unless_hung(run, status)
    if _is_copy(run, status):
        error = f"this is a copy of {status.folder}, which was training; resume continues from the copy's checkpoint"
    else:
        tail = run.log_tail()
        error = f"process {status.pid} has exited" + (f"; the end of its log:\n{tail}" if tail else "")
    failed = {"state": "failed", "last_error": error, "place": None} | waiting_ended(status)
    # A caller without write access, or with a full disk, gets the same answer. While another program starts a run, it
    # may be this one: its new process must not be reported as failed.
    with contextlib.suppress(OSError, UserError), hold_runs(run.path.parent, wait=0):
        if _died(run, run.status()):
            run.set_status(**failed)
    return status.model_copy(update=failed)


def is_alive(run: RunFolder) -> bool:
    return refresh(run).active


def is_here(status: RunStatus) -> bool:
    """Whether the run's process is, or was, one of this machine, whose name may have changed while it lives."""
    return status.host in ("", host()) or alive(status.pid, status.pid_started)


def _died(run: RunFolder, status: RunStatus) -> bool:
    dead = not alive(status.pid, status.pid_started)
    return status.active and is_here(status) and (dead or _is_copy(run, status))


def _is_copy(run: RunFolder, status: RunStatus) -> bool:
    """Whether the status was written in another folder, which is still there: this one was copied by hand."""
    try:
        return bool(status.folder) and is_run(status.folder) and not os.path.samefile(status.folder, run.path)
    except OSError:
        return False


def _unless_hung(run: RunFolder, status: RunStatus) -> RunStatus:
    if not status.active:
        return status
    if not is_here(status):
        if waits_for_machines(status):  # without a sign, for as long as they take
            return status
        since = time.time() - last_sign(run)
        if since <= ELSEWHERE_SECONDS:
            return status
        message = (
            f"its process on the machine or container `{status.host}` has given no sign of life for {duration(since)}; "
            "Stop ends the run, then Resume continues it here"
        )
    elif suspended(status.pid):
        message = f"its process {status.pid} is suspended; `kill -CONT {status.pid}` continues it, Stop ends it"
    elif (sign := silence(run, status)) is not None:
        message = f"its process {status.pid} {sign}; Stop ends it by force"
    else:
        return status
    return status.model_copy(update={"state": "hung", "message": message})
