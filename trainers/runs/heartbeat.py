"""A sign of life that a run's process writes, and what its absence shows.

A process that is suspended, or blocked in the system, still exists and keeps its last status: only the missing sign
distinguishes it from one that computes. A thread writes it, so a long step does not delay it.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_regular, remove, write_atomic
from ..processes import host, start_token
from .folder import RunFolder
from .status import RunStatus

FILE = "heartbeat.json"
BEAT_SECONDS = 5.0
MISSED_SECONDS = 30.0
"""How old the last beat of a living process is at most."""
QUIET_SECONDS = 60.0
"""How long a process may write no status, however short its iterations are."""


@contextmanager
def heartbeat(
    run: RunFolder, every: float = BEAT_SECONDS, ranks: Callable[[], list[dict[str, Any]]] = list
) -> Iterator[None]:
    """Within the block a thread writes `heartbeat.json` every so many seconds.

    It names the process (pid and processes.start_token), the time of the beat, and for how many seconds the status was
    not written. Times are those of the monotonic clock, which all processes of a machine share, and which no setting of
    the clock moves. `ranks`: of each process of a run of several its `rank`, `host`, `pid`, and the `seconds` since its
    last sign of life.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(run.path, every, ended, ranks), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        remove(run.path / FILE)


def silence(run: RunFolder, status: RunStatus) -> float | None:
    """For how many seconds the living process of this status has given no sign; None when it may be at work.

    Missing beats are a sign; so is a status that was not written for longer than the longest iteration took. None also
    where that is not known: a process without a beat, or before its first iteration.
    """
    try:
        values = json.loads(read_regular(run.path / FILE))
        writer = (values["pid"], values["started"])
        beat, quiet = float(values["beat"]), float(values["quiet"])
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return None
    if writer != (status.pid, status.pid_started):
        return None
    missed = time.monotonic() - beat
    if missed > MISSED_SECONDS:
        return missed
    slowest = status.slowest_seconds
    return quiet if slowest is not None and quiet > max(QUIET_SECONDS, slowest) else None


def rank_signs(run: RunFolder) -> list[tuple[int, str, float]]:
    """Of every process of a run of several: its rank, its machine, and how many seconds ago it last gave a sign."""
    try:
        values = json.loads(read_regular(run.path / FILE))
        missed = max(0.0, time.monotonic() - float(values["beat"])) if run.status().host == host() else 0.0
        return [(int(one["rank"]), str(one["host"]), float(one["seconds"]) + missed) for one in values["ranks"]]
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return []


def _beat(folder: Path, every: float, ended: threading.Event, ranks: Callable[[], list[dict[str, Any]]]) -> None:
    pid = os.getpid()
    started, written, since = start_token(pid), None, time.monotonic()
    while not ended.is_set():
        # A full disk or a deleted folder ends the run elsewhere, with a message.
        with contextlib.suppress(OSError, UserError):
            now = (folder / "status.json").stat().st_mtime_ns
            if now != written:
                written, since = now, time.monotonic()
            beat = time.monotonic()
            values = {"pid": pid, "started": started, "beat": beat, "quiet": beat - since, "ranks": ranks()}
            write_atomic(folder / FILE, json.dumps(values), sync=False)
        ended.wait(every)
