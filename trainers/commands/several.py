"""A command in several processes of this machine that is no run: `bench`, and `reward train`."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import UserError
from ..runs import launcher
from ..runs.process_group import is_main, run_processes

FOLDER = "IDENTITY_GRPO_PROCESSES"
"""The variable with the folder in which the processes leave how they ended."""
ERROR, FINISHED = "error.txt", "finished.txt"
INTERRUPTED = 130
TAIL = 20  # lines


def is_one_of_several() -> bool:
    """Whether this process was started as one of several, and has to start no others."""
    return "LOCAL_WORLD_SIZE" in os.environ


def start_again(processes: int, on_cpu: bool, remedy: str = "") -> int:
    """This program's command line in so many processes, to their end; process 0 writes where this one does.

    `remedy`: what to do when one of them was killed. Returns the exit status of process 0. Raises UserError with the
    error of the first that failed, and KeyboardInterrupt when they were stopped.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        environment = launcher.child_environment(processes) | {FOLDER: name}
        if on_cpu:
            environment |= launcher.visible_devices(())
        command = [sys.executable, "-m", launcher.PACKAGE.name, *sys.argv[1:]]
        logs = [folder / f"rank-{rank}.txt" for rank in range(processes)]
        failure = run_processes(command, processes, launcher.ALONE, environment, logs.__getitem__)
        error, finished = folder / ERROR, folder / FINISHED
        if error.exists() and not (failure and failure.killed):  # what others report of a killed process is no cause
            raise UserError(error.read_text(encoding="utf-8"))
        if finished.exists():  # a process that crashes at its exit changes nothing
            return int(finished.read_text())
        if failure is None:
            raise KeyboardInterrupt
        if sys.stderr is not None and sys.stderr.isatty():
            print(file=sys.stderr)  # below the bar of process 0, which could not close it
        text = f"{failure}; {remedy}" if remedy else f"{failure}"
        log = logs[failure.rank]
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:] if log.exists() else []
        raise UserError("\n".join([f"{text}; the end of its output:", *lines] if lines else [text]))


def as_one_of_several(work: Callable[[], int]) -> int:
    """The exit status that `work` returns; a process of `start_again` leaves it, or its error, to that one.

    Of several errors the first is kept: those that follow it say that a process is missing. A process that was started
    by itself raises its own.
    """
    if FOLDER not in os.environ:
        return work()
    folder = Path(os.environ[FOLDER])
    try:
        status = work()
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        text = str(error) if isinstance(error, (UserError, OSError)) else traceback.format_exc()
        with contextlib.suppress(FileExistsError), open(folder / ERROR, "x", encoding="utf-8") as file:
            file.write(text.encode(errors="backslashreplace").decode())
        raise SystemExit(1) from error
    if is_main():
        (folder / FINISHED).write_text(str(status))
    return status
