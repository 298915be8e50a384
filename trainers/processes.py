"""Which process wrote something, and whether it is still alive: a pid alone may belong to another process by now."""

from __future__ import annotations

import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import psutil

_children: dict[int, subprocess.Popen] = {}


@cache
def host() -> str:
    """This machine's name: a pid means nothing on another one that shares the disk."""
    return socket.gethostname()


def start_token(pid: int) -> str | None:
    """What distinguishes a living process from a later one with the same pid; None when it is dead or a zombie.

    On Linux the boot's id and the start in clock ticks since boot: unlike a time of day, these do not move when the
    clock is set or the machine sleeps.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if sys.platform == "linux":
            return f"{_boot()}-{_start_ticks(pid)}"
        return f"{process.create_time():.3f}"
    except (psutil.Error, OSError, ValueError, OverflowError, TypeError):
        return None


def alive(pid: int | None, token: str | float | None) -> bool:
    """Whether the process that had `pid` and this `start_token` is still running on this machine."""
    return bool(pid) and token is not None and start_token(pid) == token


def suspended(pid: int | None) -> bool:
    """Whether the process is stopped by a signal (SIGSTOP, Ctrl-Z), so that it does nothing until it is continued."""
    try:
        return bool(pid) and psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except (psutil.Error, OSError, ValueError, OverflowError, TypeError):
        return False


def adopt(child: subprocess.Popen) -> None:
    """Remember a child that nobody waits for."""
    _children[child.pid] = child


def reap() -> None:
    """Collect adopted children that have ended, so that they do not stay as zombies; safe to call from any thread."""
    for pid, child in list(_children.items()):
        if child.poll() is not None:
            _children.pop(pid, None)


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _start_ticks(pid: int) -> str:
    # Field 22; the name in field 2 may hold spaces and brackets.
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
