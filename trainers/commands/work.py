"""`work`: the process behind a run, started by the launcher. Its output goes to the run's log."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from contextlib import closing
from pathlib import Path

from ..errors import UserError
from ..runs import launcher
from ..runs.folder import RunFolder
from ..runs.machines import require_rendezvous
from ..runs.process_group import note_failure, run_processes
from ..runs.queue import wait_turn
from ..runs.status import waits_for_machines
from .options import add_launch, launch_from
from .progress import Lines
from .training import execute, print_now


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    parser.add_argument("--share-devices", action="store_true", help="do not hold the device")
    parser.add_argument("--wait", nargs="+", metavar="DEVICE", help="wait in the queue until these devices are free")
    parser.add_argument("--join", action="store_true", help="FOLDER keeps runs; the run is machine 0's")
    add_launch(parser)


def main(options: Namespace) -> int:
    if options.join:
        return _train(options.folder, False, False)
    run = RunFolder(options.folder)
    if not options.wait:
        return _start(run, options, options.share_devices)
    sys.stdin.read()  # closed when the launcher has written the status, or has died
    with wait_turn(run, options.wait, print_now) as turn:
        if turn:
            # This process holds the devices, for those that it starts as well.
            return _start(run, options, share_devices=True)
        print_now("stopped while it waited for its device")
        return 0


def _start(run: RunFolder, options: Namespace, share_devices: bool) -> int:
    """Train in this process, or in those that it starts and watches."""
    launch = launch_from(options)
    if launch.processes == launch.machines.count == 1:
        return _train(run, options.resume, share_devices)
    if options.wait:  # the queue's messages have replaced it
        run.set_status(message=launcher.join_message(launch.processes, launch.machines))
    try:
        require_rendezvous(launch.machines)
    except UserError as error:
        run.set_status(state="failed", message="", last_error=str(error))
        raise
    command = launcher.command(run, options.resume, share_devices=share_devices)
    failure = run_processes(command, launch.processes, launch.machines, log=run.rank_log)
    if failure is None:
        status = run.status()
        if status.active:  # its processes were stopped while they were loading
            waited = waits_for_machines(status)
            run.set_status(state="stopped", message=launcher.NEVER_JOINED if waited else "")
        return 0
    print_now(str(failure))
    note_failure(run, failure)
    return 1


def _train(run: RunFolder | Path, resume: bool, share_devices: bool) -> int:
    with closing(Lines(notes=False)) as show:
        result = execute(run, resume, show, share_devices)
    print_now(f"{result.state} at iteration {result.iteration}")
    return 0
