"""The processes of a run on one machine: started together, and ended together when one of them dies."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .folder import RunFolder
from .machines import Machines
from .status import waiting_ended

POLL_SECONDS = 0.1
GRACE_SECONDS = 10.0
"""How long the other processes may take to end by themselves before they are killed: one may wait for the dead."""
ANOTHER_ENDED = getattr(signal, "SIGUSR1", signal.SIGTERM)
"""The signal to the other processes when one has died: SIGTERM is a stop, which the system and SLURM send to all."""
ANOTHER = "another process of this run has ended"
ANOTHER_MACHINES = "another machine's process has ended (the connection to it is closed)"
STOPS = (-signal.SIGTERM, -signal.SIGINT, 130)
HAS_EXITED = re.compile(rf"{ANOTHER}|process \d+ has exited")  # what others write about a process that died


@dataclass(frozen=True)
class Failure:
    """The process that died first, and its exit status, negative for a signal."""

    rank: int
    ranks: int
    status: int

    @property
    def killed(self) -> bool:
        return self.status < 0

    def __str__(self) -> str:
        place = f"process {self.rank} of {self.ranks}, counted from 0,"
        if not self.killed:
            return f"{place} ended with exit status {self.status}"
        cause = " (the system does so when memory runs out)" if -self.status == signal.SIGKILL else ""
        return f"{place} was killed by {signal.Signals(-self.status).name}{cause}"


def run_processes(
    command: Sequence[str],
    count: int,
    machines: Machines,
    environment: Mapping[str, str] | None = None,
    log: Callable[[int], Path] | None = None,
) -> Failure | None:
    """Run the command in `count` processes to their end, with the environment that torch's process groups read.

    `log`: the file that a process writes to, by its rank; process 0, and without `log` all of them, write where this
    one does.

    When one fails the others get `ANOTHER_ENDED`, and are killed after `GRACE_SECONDS`; returns which was the first.
    SIGTERM, a stop, is passed to all of them; Ctrl-C reaches them without that.
    """
    address, _, port = machines.rendezvous.rpartition(":") if machines.rendezvous else ("127.0.0.1", "", _free_port())
    shared = {
        "WORLD_SIZE": str(machines.count * count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": address.strip("[]"),  # the brackets of an IPv6 address
        "MASTER_PORT": port,
    }
    first = machines.rank * count
    children: list[subprocess.Popen] = []

    asked = False

    def stop(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        for child in children if number == signal.SIGTERM else ():
            child.send_signal(number)

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for place in range(count):
            rank = first + place
            own = {"RANK": str(rank), "LOCAL_RANK": str(place)}
            with open(log(rank), "ab") if log and rank else contextlib.nullcontext() as file:
                children.append(
                    subprocess.Popen(
                        command, env={**(environment or os.environ), **shared, **own}, stdout=file, stderr=file
                    )
                )
        while True:
            ended = {first + place: status for place, child in enumerate(children) if (status := child.poll())}
            if asked:  # one that was still loading has no handler yet
                ended = {rank: status for rank, status in ended.items() if status not in STOPS}
            if ended:
                # One that was killed is the cause of what others report at the same moment.
                rank = min(ended, key=ended.__getitem__)
                return Failure(rank, machines.count * count, ended[rank])
            if all(child.returncode is not None for child in children):
                return None
            time.sleep(POLL_SECONDS)
    finally:
        _end(children)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def is_main() -> bool:
    """Whether this process is alone or was started as the first of several, before they have met."""
    return os.environ.get("RANK", "0") == "0"


def among_machines() -> bool:
    """Whether this process was started as one of a run on several machines, by its environment, before
    the processes have met."""
    return os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE")


def note_failure(run: RunFolder, failure: Failure) -> None:
    """Make the run `failed` with the reason and the end of the dead process's log, unless its own error is known or
    it had ended."""
    status = run.status()
    if status.state in ("finished", "stopped"):  # a process that crashes at its exit changes nothing
        return
    known = status.last_error if status.state == "failed" else ""
    here = failure.rank > 0 and known.startswith(ANOTHER_MACHINES)  # process 0 took one of this machine for another's
    if not known or failure.killed or here or HAS_EXITED.match(known):
        tail = run.log_tail(rank=failure.rank)
        error = f"{failure}" + (f"; the end of its log:\n{tail}" if tail else "")
        run.set_status(state="failed", last_error=error, **waiting_ended(status))


def _end(children: Sequence[subprocess.Popen]) -> None:
    living = [child for child in children if child.poll() is None]
    for child in living:
        child.send_signal(ANOTHER_ENDED)
    until = time.monotonic() + GRACE_SECONDS
    for child in living:
        try:
            child.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
