"""Runs that wait for a device, in the order of their claims (claims.py).

Every waiting run has a process of its own, which needs neither the program that started it nor a server. When no
earlier claim is on its devices and all of them are free, the process locks them and trains.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import UserError
from .claims import Claim, earlier, enter, leave
from .devices import DeviceBusy, hold_device, holders
from .folder import RunFolder
from .heartbeat import at_work, heartbeat
from .registry import list_runs, refresh

POLL_SECONDS = 0.5


def starting_on(root: Path, kind: str, gpus: Sequence[int]) -> RunFolder | None:
    """A run under `root` that is about to take one of these devices: its process does when it has loaded torch."""
    for run in list_runs(root):
        status = refresh(run)
        theirs = set(status.gpus or ())
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
    claim, held = enter(run.path, devices), ExitStack()
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
            leave(claim)
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
        at_work()
        place = len(earlier(claim)) + 1
        if place == 1 and _take(run, claim.devices, held):
            return True
        text = _waits_for(run, claim.devices, place)
        if text != shown:
            shown = text
            run.set_status(state="queued", pid=claim.pid, pid_started=claim.started, place=place, message=text)
            report(text)
        time.sleep(POLL_SECONDS)
    return False


def _take(run: RunFolder, devices: Sequence[str], held: ExitStack) -> bool:
    """Lock all the devices, or none of them."""
    kind = devices[0].partition("-")[0]
    if starting_on(run.path.parent, kind, run.status().gpus or ()) is not None:
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
