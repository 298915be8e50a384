"""Runs that wait for a device: one queue for all runs of this user on this machine, wherever their folders lie.

Every waiting run has a process of its own, which needs neither the program that started it nor a server. Its claim is
a numbered file beside the locks of the devices, and counts as long as that process lives. When no earlier claim is on
its devices and all of them are free, the process locks them and trains.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ..errors import UserError
from ..files import read_regular, write_atomic
from ..processes import alive, start_token
from .devices import DeviceBusy, hold_device, holders, locks_folder
from .folder import RunFolder
from .heartbeat import heartbeat
from .registry import list_runs, refresh

POLL_SECONDS = 0.5
CLAIM = re.compile(r"(\d{9})\.json")


@dataclass(frozen=True)
class Claim:
    """A run's place in the queue: the lower the number, the earlier its turn."""

    number: int
    run: Path
    devices: tuple[str, ...]
    pid: int
    started: str | float


def claims(devices: Iterable[str]) -> list[Claim]:
    """The claims of living processes on any of the devices, in the order of their turns."""
    wanted = set(devices)
    return [claim for claim in _claims() if wanted & set(claim.devices)]


def starting_on(root: Path, kind: str, gpus: Sequence[int]) -> RunFolder | None:
    """A run under `root` that is about to take one of these devices: its process does when it has loaded torch."""
    for run in list_runs(root):
        status = refresh(run)
        theirs = set(status.gpus)
        if status.state == "starting" and (theirs & set(gpus) or (not theirs and kind == "cpu")):
            return run
    return None


@contextmanager
def wait_turn(
    run: RunFolder, devices: Sequence[str], report: Callable[[str], None] = lambda text: None
) -> Iterator[bool]:
    """Wait until it is the run's turn and its devices are free; they are held within the block.

    Yields False, and holds nothing, when the run was asked to stop instead; its state is `stopped` then, as after a
    Ctrl-C. devices: names as `devices.device_name` gives them. `report` gets a line whenever the place in the queue
    changes.
    """
    claim, held = _enter(run.path, devices), ExitStack()
    with held:
        try:
            with heartbeat(run):
                turn = _wait(run, claim, held, report)
        except KeyboardInterrupt:
            run.set_status(state="stopped", place=None, message="")
            raise
        except Exception as error:
            with contextlib.suppress(OSError, UserError):
                run.set_status(state="failed", place=None, message="", last_error=str(error))
            raise
        finally:
            _file(claim.number).unlink(missing_ok=True)
        if turn:
            run.set_status(state="starting", place=None, message="")
        else:
            run.take("stop")
            run.set_status(state="stopped", place=None, message="stopped while it waited for its device")
        yield turn


def _wait(run: RunFolder, claim: Claim, held: ExitStack, report: Callable[[str], None]) -> bool:
    """Whether the devices are held by `held` now; False when the run was asked to stop."""
    shown = None
    while not run.requested("stop"):
        earlier = [other for other in claims(claim.devices) if other.number < claim.number]
        if not earlier and _take(run, claim.devices, held):
            return True
        text = _waits_for(run, claim.devices, len(earlier) + 1)
        if text != shown:
            shown = text
            run.set_status(
                state="queued", pid=claim.pid, pid_started=claim.started, place=len(earlier) + 1, message=text
            )
            report(text)
        time.sleep(POLL_SECONDS)
    return False


def _take(run: RunFolder, devices: Sequence[str], held: ExitStack) -> bool:
    """Lock all the devices, or none of them."""
    kind = devices[0].partition("-")[0]
    if starting_on(run.path.parent, kind, run.status().gpus) is not None:
        return False
    with ExitStack() as taken:
        try:
            for device in devices:
                taken.enter_context(hold_device(device, run.path))
        except DeviceBusy:
            return False
        held.enter_context(taken.pop_all())
    return True


def _waits_for(run: RunFolder, devices: Sequence[str], place: int) -> str:
    gpus = run.status().gpus
    names = f"GPU {', '.join(map(str, gpus))}" if gpus else "the CPU" if "cpu" in devices else "the GPU"
    holder = next(iter(holders(devices).values()), None)
    return f"waits for {names}, place {place} in the queue" + (f"; run {holder.name} has it" if holder else "")


# --- claims on disk --------------------------------------------------------------------------------------------------


def _enter(run: Path, devices: Sequence[str]) -> Claim:
    folder = _folder()
    pid = os.getpid()
    with FileLock(folder / "queue.lock"):
        living = _claims()
        for path in folder.iterdir():
            found = CLAIM.fullmatch(path.name)
            if found and int(found[1]) not in {claim.number for claim in living}:
                path.unlink(missing_ok=True)
        number = max((claim.number for claim in living), default=0) + 1
        claim = Claim(number, run, tuple(devices), pid, start_token(pid))
        values = {"run": os.fspath(run), "devices": list(devices), "pid": pid, "started": claim.started}
        write_atomic(_file(number), json.dumps(values), sync=False)
    return claim


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
    return found


def _file(number: int) -> Path:
    return _folder() / f"{number:09d}.json"


def _folder() -> Path:
    folder = locks_folder() / "queue"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder
