"""`work`: the process behind a run, started by the launcher. Its output goes to the run's log."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from contextlib import closing
from pathlib import Path

from ..runs.folder import RunFolder
from .progress import Lines
from .training import execute


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint")
    parser.add_argument("--share-devices", action="store_true", help="do not hold the device")


def main(options: Namespace) -> int:
    with closing(Lines()) as show:
        result = execute(RunFolder(options.folder), options.resume, show, options.share_devices)
    print(f"{result.state} at iteration {result.iteration}", flush=True)
    return 0
