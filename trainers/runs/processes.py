"""Which process wrote something, and whether it still lives: a pid alone may have been given to another process since."""

from __future__ import annotations

import subprocess

import psutil

_children: dict[int, subprocess.Popen] = {}


def started(pid: int) -> float | None:
    """Start time of a living process in seconds since the epoch; None when it is dead or a zombie."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.Error, ValueError):
        return None


def alive(pid: int | None, pid_started: float | None) -> bool:
    """Whether the process that had `pid` and started at `pid_started` still runs (2 s are left for clock adjustments)."""
    now = started(pid) if pid else None
    return now is not None and pid_started is not None and abs(now - pid_started) < 2


def adopt(child: subprocess.Popen) -> None:
    """Remember a child that nobody waits for."""
    _children[child.pid] = child


def reap() -> None:
    """Let adopted children that have ended go, so that they do not stay as zombies while we live."""
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            del _children[pid]
