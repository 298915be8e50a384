"""`work`: the process behind a run, started by the launcher. Its output goes to the run's log."""

from __future__ import annotations

import subprocess
import sys
from argparse import ArgumentParser, Namespace
from contextlib import closing
from pathlib import Path

from ..runs import launcher
from ..runs.folder import RunFolder
from ..runs.queue import wait_turn
from .progress import Lines
from .training import execute, print_now


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    parser.add_argument("--share-devices", action="store_true", help="do not hold the device")
    parser.add_argument("--wait", nargs="+", metavar="DEVICE", help="wait in the queue until these devices are free")
    parser.add_argument("--processes", type=int, default=1, help="with --wait: how many to start then")


def main(options: Namespace) -> int:
    run = RunFolder(options.folder)
    if not options.wait:
        return _train(run, options.resume, options.share_devices)
    sys.stdin.read()  # closed when the launcher has written the status, or has died
    with wait_turn(run, options.wait, print_now) as turn:
        if not turn:
            print_now("stopped while it waited for its device")
            return 0
        if options.processes == 1:
            return _train(run, options.resume, share_devices=True)
        # This process holds the devices for them.
        return subprocess.call(launcher.command(run, options.resume, options.processes, share_devices=True))


def _train(run: RunFolder, resume: bool, share_devices: bool) -> int:
    with closing(Lines(notes=False)) as show:
        result = execute(run, resume, show, share_devices)
    print_now(f"{result.state} at iteration {result.iteration}")
    return 0
