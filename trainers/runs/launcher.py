"""Starting a run as a child that outlives us, and ending it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ..errors import UserError, command_line
from ..processes import adopt, alive, reap, start_token, suspended
from .folder import RunFolder
from .heartbeat import BEAT_SECONDS, last_sign
from .machines import Machines
from .registry import is_here, refresh
from .status import BEFORE_FIRST_STEP, WAITS, State, waits_for_machines

if TYPE_CHECKING:
    from ..config import RunConfig

PACKAGE = Path(__file__).resolve().parents[1]
"""This package's folder: `trainers` in a checkout or a pack, `identity_grpo` where it is installed."""
PROGRAM = (sys.executable, "-m", PACKAGE.name, "work")
ALONE = Machines()
NEVER_JOINED = "it was stopped before the other machines had joined"
SAVING_SECONDS = 600.0
"""How long a run that is writing a checkpoint is waited for before it is ended by force."""
HUNG_SECONDS = 5.0
"""How long a run that gives no sign of life may take to end before it is ended by force."""
WATCHED_SECONDS = 3 * BEAT_SECONDS
"""How long a run of another machine is looked at before it counts as gone."""


def command(
    run: RunFolder,
    resume: bool = False,
    processes: int = 1,
    share_devices: bool = False,
    wait: Sequence[str] = (),
    machines: Machines = ALONE,
) -> list[str]:
    """The argument list of the child: never a shell line, nothing in it that a user wrote but the run's folder.

    wait: names of the devices that the child waits for. Where a run has several processes the child starts them.
    """
    work = [*PROGRAM, str(run.path), *["--resume"] * resume, *["--share-devices"] * share_devices]
    if processes > 1 or machines.count > 1:
        work += ["--processes", str(processes), *machine_options(machines)]
    return work + (["--wait", *wait] if wait else [])


def machine_options(machines: Machines) -> list[str]:
    """The options of a command for this one of several machines; none where there is one."""
    if machines.count == 1:
        return []
    numbers = ["--machines", str(machines.count), "--machine-rank", str(machines.rank)]
    return [*numbers, "--rendezvous", machines.rendezvous]


def child_environment(processes: int, threads: int | None = None) -> dict[str, str]:
    """The environment of a run's processes on this machine; `threads`: CPU threads of each, None: its share."""
    environment = dict(os.environ)
    if threads or (processes > 1 and "OMP_NUM_THREADS" not in environment):
        environment["OMP_NUM_THREADS"] = str(threads or max(1, cores() // processes))
    # An installed package is found without it, and site-packages must not come before the standard library.
    if PACKAGE.parent != Path(sysconfig.get_path("purelib")).resolve():
        path = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(path)
    # A failed collective operation of NCCL ends its process, which would otherwise wait for ever.
    return (
        {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"} | environment | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    )


def start(
    run: RunFolder,
    resume: bool = False,
    processes: int = 1,
    share_devices: bool = False,
    gpus: Sequence[int] | None = None,
    threads: int | None = None,
    wait: Sequence[str] = (),
    machines: Machines = ALONE,
) -> subprocess.Popen:
    """Start the run in its own session: it is not ended with us, nor by a Ctrl-C meant for us. It writes to log.txt.

    It works wherever the pack lies and whatever its folder is called: the child finds this package by PYTHONPATH, and
    its working directory is the run's folder, so that no file beside us shadows a module of it. `gpus`: the CUDA
    devices, as this process counts them, in place of `processes` (see `processes_on`); none of them: the CPU. The
    status keeps them, `processes` and `machines` for a resume. `threads`: CPU threads of each process; None: its share
    of the cores. `wait`: names of the devices that it waits for in the queue (queue.py), in state `queued`; without
    them it fails when they are taken. `machines`: each with so many processes, which this starts on this one.
    """
    config = run.settings()  # settings that cannot be read end the start here, and leave the run's status as it is
    if gpus:
        processes = processes_on(gpus, config)
    environment = child_environment(processes, threads)
    if gpus is not None:
        environment |= visible_devices(gpus)
    detached = (
        {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
    )
    run.prepare()
    with open(run.log_file, "ab") as log:
        child = subprocess.Popen(
            command(run, resume, processes, share_devices, wait, machines),
            cwd=run.path,
            env=environment,
            stdin=subprocess.PIPE if wait else subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            **detached,
        )
    # The child writes its own status only after importing torch; one that waits does when its stdin is closed.
    run.set_status(
        state="queued" if wait else "starting",
        group=child.pid,
        pid=child.pid,
        pid_started=start_token(child.pid),
        gpus=None if gpus is None else list(gpus),
        processes=processes,
        machines=asdict(machines),
        last_error="",
        message=join_message(processes, machines),
        place=None,
        **BEFORE_FIRST_STEP,
    )
    if child.stdin:
        child.stdin.close()
    adopt(child)
    return child


def visible_devices(gpus: Sequence[int]) -> dict[str, str]:
    """The environment in which a process sees these of our CUDA devices alone; none of them: it uses the CPU."""
    ours = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in ours.split(",")] if ours else []
    seen = ",".join(names[gpu] if names else str(gpu) for gpu in gpus)
    return {"CUDA_VISIBLE_DEVICES": seen, "ACCELERATE_USE_CPU": str(not gpus).lower()}


def join_message(processes: int, machines: Machines) -> str:
    """What machine 0 waits for: the command that the others start; empty where there are none."""
    if machines.count == 1:
        return ""
    ranks = "1" if machines.count == 2 else f"K (1 to {machines.count - 1})"
    options = machine_options(replace(machines, rank=1))
    options[options.index("--machine-rank") + 1] = ranks.split()[0]
    command = command_line("train", "--processes", str(processes), *options)
    return f"{WAITS}; start on machine {ranks}: {command}"


def stop(run: RunFolder, wait: float = 60.0) -> State:
    """End the run: by request (it stops after the step in flight), after `wait` seconds by force.

    A run that is writing a checkpoint is waited for longer, and one that hangs for some seconds only; one that is
    suspended is continued, so that it can save. A run that waits for its device leaves the queue; one that waits for
    other machines is ended at once. Returns the state it ends in: `stopped`, or what it was already if nothing ran. A
    run on another machine is only asked; one that hangs there and still gives no sign of life is `stopped` as well.
    """
    status = refresh(run)
    if not status.active:
        return status.state
    at_once = waits_for_machines(run.status())  # in a call that listens to nothing
    run.request("stop")
    if not is_here(run.status()):
        return _stop_elsewhere(run) if status.state == "hung" else run.status().state
    if at_once:
        _signal(run, "SIGKILL")
        _ended(run, 10)
        run.take("stop")
        run.set_status(state="stopped", message=NEVER_JOINED)
        return refresh(run).state
    hung = status.state == "hung"
    if suspended(status.pid):
        hung = False
        _signal(run, "SIGCONT")
    if not _ended(run, min(wait, HUNG_SECONDS) if hung else wait) and (
        hung or not (run.status().phase == "saving" and _ended(run, SAVING_SECONDS))
    ):
        _signal(run, "SIGKILL")
        _ended(run, 10)
        run.take("stop")
        message = "it did not stop by itself and was ended by force; resume continues from its last checkpoint"
        run.set_status(state="stopped", message=message, place=None)
    return refresh(run).state


def processes_on(gpus: Sequence[int], config: RunConfig) -> int:
    """How many processes a run has: one on each GPU, but for the last with `reward.device` own; one on the CPU.

    Raises UserError for too few.
    """
    processes = len(gpus) - config.rewards_have_a_device
    if gpus and not processes:
        raise UserError("reward.device is `own`, which needs two GPUs or more; choose more, or set it to `same`")
    return max(1, processes)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stop_elsewhere(run: RunFolder) -> State:
    """The state of a run whose machine or container is probably gone. If it is not, the request ends it there."""
    before, until = last_sign(run), time.monotonic() + WATCHED_SECONDS
    while last_sign(run) == before:
        if time.monotonic() > until:
            gone = f"its machine or container `{run.status().host}` gives no sign of life"
            run.set_status(state="stopped", message=f"{gone}; resume continues from its last checkpoint", place=None)
            break
        time.sleep(0.2)
    return run.status().state


def _ended(run: RunFolder, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while True:
        reap()
        status = run.status()
        if not alive(status.pid, status.pid_started):
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.2)


def _signal(run: RunFolder, name: str) -> None:
    """To the run's whole process group, or its process where it was not started by us, and all their descendants.

    name: a signal's; it is ended on a system without it.
    """
    status, number = run.status(), getattr(signal, name, signal.SIGTERM)
    if not alive(status.pid, status.pid_started):
        return
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(status.group or status.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.send_signal(number)
    with contextlib.suppress(ProcessLookupError, psutil.Error):
        if status.group and os.name == "posix":
            os.killpg(status.group, number)
        else:
            psutil.Process(status.pid).send_signal(number)
