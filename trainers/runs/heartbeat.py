"""A sign of life that a run's process writes, and what its absence shows.

A process that is suspended, or blocked in a call that never returns, still exists and keeps its last status. A thread
beats, so a long step does not delay the sign; it also looks whether the thread that trains gets ahead.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_regular, remove, write_atomic
from ..processes import host, start_token
from .folder import RunFolder
from .status import RunStatus

FILE = "heartbeat.json"
OTHERS = "heartbeat-*.json"
BEAT_SECONDS = 5.0
MISSED_SECONDS = 30.0
"""How old the last beat of a living process is at most."""
STILL_SECONDS = 45.0
"""How long a process that trains stays at one place of its code, unless it has stayed for half as long before."""
QUIET_SECONDS = 60.0
"""How long a process may write no status, however short its iterations are."""
ELSEWHERE_SECONDS = 120.0
"""How old the last sign of a process on another machine is at most: the clocks of two machines differ."""

_steps = [0]


@dataclass(frozen=True)
class Beat:
    """When a process beat, in seconds of the monotonic clock, which all processes of a machine share and which no
    setting of the clock moves. By then no status had been written for `quiet` seconds, and no process of the run had
    come to another place of its code for `still` seconds; `longest`: the longest such time that has ended by itself.
    `ranks`: what `heartbeat` was given of the processes of a run of several.
    """

    pid: int
    started: str | float
    beat: float
    quiet: float
    still: float
    longest: float
    ranks: list[dict[str, Any]]


def at_work() -> None:
    """Note that this process has come to its next step: a loop may look the same whenever the heartbeat looks."""
    _steps[0] += 1


@contextmanager
def heartbeat(
    run: RunFolder, every: float = BEAT_SECONDS, rank: int = 0, signs: Callable[[], list[dict[str, Any]]] = list
) -> Iterator[None]:
    """Within the block a thread looks at the thread that entered it every so many seconds, and beats.

    The process of rank 0 writes `heartbeat.json`, each other `heartbeat-<rank>.json`, from which rank 0 learns that it
    is waited for. `signs`: of each process of a run of several its `rank`, `host`, `pid`, and the `seconds` since its
    last sign of life; the process of rank 0 writes them too.
    """
    ended = threading.Event()
    if rank == 0:
        for left in run.path.glob(OTHERS):  # of processes that were killed
            remove(left)
    watched = threading.get_ident()
    arguments = (run.path, every, rank, signs, watched, ended)
    thread = threading.Thread(target=_beat, args=arguments, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        remove(_file(run.path, rank))


def silence(run: RunFolder, status: RunStatus) -> str | None:
    """What shows that the living process of this status hangs, with the seconds since; None when it may be at work.

    Missing beats show it; so does a process that stays at one place of its code, or writes no status for longer than
    its longest iteration took. None also for a process without a beat.
    """
    try:
        last = Beat(**json.loads(read_regular(run.path / FILE)))
        since = time.monotonic() - last.beat
        if (last.pid, last.started) != (status.pid, status.pid_started):
            return None
        if since > MISSED_SECONDS:
            return f"has given no sign of life for {since:.0f} s"
        if last.still > max(STILL_SECONDS, 2 * last.longest):
            return f"has been at the same place of its code for {last.still:.0f} s"
        slowest = status.slowest_seconds
        if slowest is not None and last.quiet > max(QUIET_SECONDS, slowest):
            return f"has finished no step for {last.quiet:.0f} s, longer than its longest iteration"
    except (OSError, ValueError, TypeError, RecursionError):
        pass
    return None


def last_sign(run: RunFolder) -> float:
    """When the run's process wrote its status or its beat last, in seconds since the epoch by the clock of the disk."""
    times = [0.0]
    for name in (FILE, "status.json"):
        with contextlib.suppress(OSError):
            times.append((run.path / name).stat().st_mtime)
    return max(times)


def rank_signs(run: RunFolder) -> list[tuple[int, str, float]]:
    """Of every process of a run of several: its rank, its machine, and how many seconds ago it last gave a sign."""
    try:
        last = Beat(**json.loads(read_regular(run.path / FILE)))
        missed = max(0.0, time.monotonic() - last.beat) if run.status().host == host() else 0.0
        return [(int(one["rank"]), str(one["host"]), float(one["seconds"]) + missed) for one in last.ranks]
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return []


def _file(folder: Path, rank: int) -> Path:
    return folder / (OTHERS.replace("*", str(rank)) if rank else FILE)


def _beat(
    folder: Path,
    every: float,
    rank: int,
    signs: Callable[[], list[dict[str, Any]]],
    watched: int,
    ended: threading.Event,
) -> None:
    pid = os.getpid()
    started, written, place = start_token(pid), None, None
    moved = since = time.monotonic()
    longest = 0.0
    while not ended.is_set():
        # A full disk or a deleted folder ends the run elsewhere, with a message.
        with contextlib.suppress(OSError, UserError):
            now, beat = (folder / "status.json").stat().st_mtime_ns, time.monotonic()
            if now != written:
                written, since = now, beat
            before, place = place, (written, _place(watched))
            ahead = beat if place != before else moved
            if rank:
                moved = ahead
                write_atomic(_file(folder, rank), json.dumps(moved), sync=False)
            else:
                ahead = max([ahead, *_others(folder)])
                if ahead > moved:
                    longest = max(longest, ahead - moved - every)
                moved = ahead
                found = Beat(pid, started, beat, beat - since, beat - moved, longest, signs())
                write_atomic(_file(folder, rank), json.dumps(vars(found)), sync=False)
        ended.wait(every)


def _place(thread: int) -> tuple[int, ...]:
    """Where the thread is in its code, and how many steps it has noted: equal as long as it is in one call."""
    frame = sys._current_frames().get(thread)
    found = [_steps[0]]
    while frame is not None:
        found += [id(frame.f_code), frame.f_lasti]
        frame = frame.f_back
    return tuple(found)


def _others(folder: Path) -> Iterator[float]:
    """When the processes of other ranks came to another place last."""
    for path in folder.glob(OTHERS):
        with contextlib.suppress(OSError, ValueError):
            yield float(json.loads(read_regular(path)))
