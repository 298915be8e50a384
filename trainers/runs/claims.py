"""The queue on disk: one for all runs of this user on this machine, wherever their folders lie.

Beside the locks of the devices every waiting process has a claim, a numbered file that counts as long as the process
lives. `order.json` lists numbers in the order of their turns; claims that it does not list come after, the lower number
first. A claim is never changed, and the order is replaced as one file, so that every reader sees a complete queue.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from filelock import FileLock

from ..errors import UserError
from ..files import read_regular, write_atomic
from ..processes import alive, start_token, suspended
from .devices import locks_folder

CLAIM = re.compile(r"(\d{9})\.json")
ORDER = "order.json"
Move = Literal["first", "up", "down", "last"]
MOVES: tuple[Move, ...] = get_args(Move)


@dataclass(frozen=True)
class Claim:
    """A run's entry in the queue: what it waits for, and the process that waits."""

    number: int
    run: Path
    devices: tuple[str, ...]
    pid: int
    started: str | float


def claims(devices: Iterable[str] | None = None) -> list[Claim]:
    """The claims of living processes, on any of the devices or on all, in the order of their turns."""
    wanted = None if devices is None else set(devices)
    return [claim for claim in _claims() if wanted is None or wanted & set(claim.devices)]


def earlier(claim: Claim) -> list[Claim]:
    """The claims on the same devices whose turn comes before. One whose process is suspended holds up no other."""
    rivals = claims(claim.devices)
    place = next((i for i, other in enumerate(rivals) if other.number == claim.number), len(rivals))
    return [other for other in rivals[:place] if not suspended(other.pid)]


def enter(run: Path, devices: Sequence[str]) -> Claim:
    """Add a claim of this process at the end of the queue."""
    folder, pid = _folder(), os.getpid()
    with FileLock(folder / "queue.lock"):
        living = [claim.number for claim in _claims()]
        for path in folder.iterdir():
            found = CLAIM.fullmatch(path.name)
            if found and int(found[1]) not in living:
                path.unlink(missing_ok=True)
        # The number of a claim that has left must not come back while the order still lists it.
        _write_order(living)
        claim = Claim(max(living, default=0) + 1, run, tuple(devices), pid, start_token(pid))
        values = {"run": os.fspath(run), "devices": list(devices), "pid": pid, "started": claim.started}
        write_atomic(_file(claim.number), json.dumps(values), sync=False)
    return claim


def leave(claim: Claim) -> None:
    """Take a claim out of the queue."""
    _file(claim.number).unlink(missing_ok=True)


def move(run: Path, to: Move | int) -> int:
    """Move a waiting run among those that wait for one of its devices: one place `up` or `down`, `first` or `last`, or
    to the place with that number, 1 is the next.

    Returns its place; at the end of the queue it keeps its place. Raises UserError for a run that does not wait, and
    for another move.
    """
    if to not in MOVES and not (type(to) is int and to > 0):
        raise UserError(f"a run cannot be moved `{to}` in the queue; choose one of {', '.join(MOVES)}")
    with FileLock(_folder() / "queue.lock"):
        queue = _claims()
        own = next((claim for claim in queue if os.path.realpath(claim.run) == os.path.realpath(run)), None)
        if own is None:
            raise UserError(f"run {Path(run).name} does not wait in the queue; only a waiting run can be moved")
        rivals = [claim for claim in queue if set(claim.devices) & set(own.devices)]
        at = rivals.index(own)
        last = len(rivals) - 1
        words = {"first": 0, "up": max(0, at - 1), "down": min(last, at + 1), "last": last}
        place = min(last, to - 1) if isinstance(to, int) else words[to]
        if place != at:
            neighbour = rivals[place]
            queue.remove(own)
            queue.insert(queue.index(neighbour) + (place > at), own)
            _write_order([claim.number for claim in queue])
    return place + 1


def _claims() -> list[Claim]:
    """All claims of living processes, in order; one that cannot be read counts as a dead one's."""
    found = []
    for path in sorted(_folder().iterdir()):
        if not (match := CLAIM.fullmatch(path.name)):
            continue
        try:
            values = json.loads(read_regular(path))
            claim = Claim(
                int(match[1]), Path(values["run"]), tuple(values["devices"]), values["pid"], values["started"]
            )
        except (OSError, ValueError, TypeError, LookupError):
            continue
        if alive(claim.pid, claim.started):
            found.append(claim)
    order = {number: place for place, number in enumerate(_order())}
    return sorted(found, key=lambda claim: (order.get(claim.number, len(order)), claim.number))


def _order() -> list[int]:
    try:
        listed = json.loads(read_regular(_folder() / ORDER))
        return [number for number in listed if type(number) is int]
    except (OSError, ValueError, TypeError, RecursionError):
        return []


def _write_order(numbers: Sequence[int]) -> None:
    write_atomic(_folder() / ORDER, json.dumps(list(numbers)), sync=False)


def _file(number: int) -> Path:
    return _folder() / f"{number:09d}.json"


def _folder() -> Path:
    folder = locks_folder() / "queue"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
