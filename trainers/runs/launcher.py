"""Starting a run as a child that outlives us, and ending it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from .folder import RunFolder
from .processes import adopt, alive, reap, started
from .registry import ALIVE, refresh

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 10.0  # seconds between SIGINT and force


def command(
    run: RunFolder, resume: bool = False, processes: int = 1, share_devices: bool = False, on_gpus: bool | None = None
) -> list[str]:
    """The argument list of the child: never a shell line, nothing in it that a user wrote but the run's folder.

    `on_gpus`: whether several processes share GPUs; None: if there are any.
    """
    launch = [sys.executable]
    if processes > 1:
        if on_gpus is None:
            import torch

            on_gpus = torch.cuda.is_available()
        launch += [
            "-m",
            "accelerate.commands.launch",
            "--num_processes",
            str(processes),
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "--main_process_port",
            str(_free_port()),
        ]
        launch.append("--multi_gpu" if on_gpus else "--cpu")
    module = ["-m", "trainers", "work", str(run.path)]
    return launch + module + ["--resume"] * resume + ["--share-devices"] * share_devices


def start(
    run: RunFolder,
    resume: bool = False,
    processes: int = 1,
    share_devices: bool = False,
    gpus: Sequence[int] | None = None,
) -> subprocess.Popen:
    """Start the run in its own session: it is not ended with us, nor by a Ctrl-C meant for us. Its words go to log.txt.

    It works wherever the pack lies and whatever its folder is called: the child finds `trainers` by PYTHONPATH, and stands
    in the run's folder, so that no file beside us shadows a module of it. `gpus`: the CUDA devices, as this process counts
    them, that get one process each, in place of `processes`; none of them: the CPU. The status keeps them for a resume.
    """
    environment = dict(os.environ)
    if gpus is not None:
        processes = max(1, len(gpus))
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(_visible(gpus))
        run.set_status(gpus=list(gpus))
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    detached = (
        {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {"start_new_session": True}
    )
    run.clear_requests()
    with open(run.log_file, "ab") as log:
        child = subprocess.Popen(
            command(run, resume, processes, share_devices, None if gpus is None else bool(gpus)),
            cwd=run.path,
            env=environment | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            **detached,
        )
    # Written long before the child, which has torch to import, writes its own.
    run.set_status(
        state="starting", group=child.pid, pid=child.pid, pid_started=started(child.pid), last_error="", message=""
    )
    adopt(child)
    return child


def stop(run: RunFolder, wait: float = 60.0) -> str:
    """End the run: by request (it stops after the step in flight), after `wait` seconds by SIGINT, PATIENCE later by force.

    Returns the state it ends in: `stopped`, or what it was already if nothing ran.
    """
    state = refresh(run)["state"]
    if state not in ALIVE:
        return state
    run.request("stop")
    if not _ended(run, wait):
        _signal(run, signal.SIGINT)
        if not _ended(run, PATIENCE):
            _signal(run, getattr(signal, "SIGKILL", signal.SIGTERM))
            _ended(run, 10)
            run.take("stop")
            run.set_status(
                state="stopped",
                message="it did not stop by itself and was ended by force; resume takes its last checkpoint",
            )
    return refresh(run)["state"]


def _ended(run: RunFolder, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while True:
        reap()
        status = run.status()
        if not alive(status.get("pid"), status.get("pid_started")):
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.2)


def _signal(run: RunFolder, number: int) -> None:
    """To the run's whole process group, or to its process where it was not started by us."""
    status = run.status()
    if not alive(status.get("pid"), status.get("pid_started")):
        return
    try:
        if status.get("group") and os.name == "posix":
            os.killpg(status["group"], number)
        else:
            psutil.Process(status["pid"]).send_signal(number)
    except (ProcessLookupError, psutil.Error):
        pass


def _visible(gpus: Sequence[int]) -> list[str]:
    """What CUDA_VISIBLE_DEVICES must say in a child for it to see these of our devices."""
    ours = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in ours.split(",")] if ours else []
    return [names[gpu] if names else str(gpu) for gpu in gpus]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
