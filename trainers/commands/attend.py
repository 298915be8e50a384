"""Training a run and staying with it to its end."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, program
from ..runs import launcher
from ..runs.folder import RunFolder
from .progress import Bar, Lines, quiet_libraries

if TYPE_CHECKING:
    from ..grpo.trainer import Result

STOPPED = 130


def attend(run: RunFolder, resuming: bool, processes: int) -> int:
    """Train the run in this process, or follow several, and say how it ended; returns the exit status."""
    print(f"run {run.path}", flush=True)
    show = Bar() if sys.stderr.isatty() else Lines()
    try:
        if processes > 1:
            state = _follow(run, resuming, processes, show)
        else:
            run.prepare()
            run.set_status(state="starting", group=None)
            run.log(f"{'resumed' if resuming else 'started'} from the command line")
            state = execute(run, resuming, show).state
            run.log(state)
    except Exception:
        run.log(traceback.format_exc())
        raise
    finally:
        show.close()
    _print_end(run, state)
    return 0 if state == "finished" else STOPPED


def execute(run: RunFolder, resuming: bool, show: Bar | Lines, share_devices: bool = False) -> Result:
    """Train in this process (one of several under accelerate), holding its device; plot the curve at the end."""
    quiet_libraries()
    from ..grpo.ranks import Ranks
    from ..grpo.trainer import train
    from ..runs.inputs import run_inputs

    config = run.config()
    with contextlib.ExitStack() as stack:
        try:
            ranks = Ranks(config.process_timeout_minutes, config.trackers, run.path)
            limit_threads(ranks)
            if not share_devices and (ranks.device.type != "cpu" or ranks.accelerator.is_local_main_process):
                stack.enter_context(_held(ranks.device, run.path))
            inputs = run_inputs(config)
        except UserError as error:
            run.set_status(state="failed", last_error=str(error))
            raise
        result = train(config, run, inputs, resume=resuming, progress=show, ranks=ranks)
        if ranks.is_main:
            _plot(run)
    return result


def limit_threads(ranks) -> None:
    """CPU threads of this process: its share of the cores, unless OMP_NUM_THREADS says otherwise.

    A run on a GPU leaves the other GPUs' runs theirs: as many threads as there are cores in each of several processes
    bring all of them to a halt.
    """
    import os

    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        sharers = torch.cuda.device_count() if ranks.device.type == "cuda" else ranks.count
        torch.set_num_threads(max(1, launcher.cores() // max(1, sharers)))


def refuse_busy_device(run_anyway: bool = False) -> None:
    """Raises UserError when another run holds this machine's device: before a run is made that could not start."""
    from accelerate import PartialState

    with _held(PartialState().device, Path("a new run")):
        pass


def _follow(run: RunFolder, resuming: bool, processes: int, show: Bar | Lines) -> str:
    """Start several processes and show their progress; Ctrl-C stops them as it stops one."""
    child = launcher.start(run, resuming, processes)
    try:
        while child.poll() is None:
            status = run.status()
            if isinstance(show, Bar) and status.phase and status.iterations:
                done = status.iteration / status.iterations
                show.show(status.iteration, status.iterations, status.phase, done, status.eta_seconds)
            time.sleep(0.5)
    except KeyboardInterrupt:
        print("\nstopping after the step in flight", file=sys.stderr)
        launcher.stop(run)
        child.wait()
    status = run.status()
    if child.returncode and status.state != "stopped":
        raise UserError(f"run {run.id} failed: {status.last_error}\n{run.log_tail()}")
    return status.state


def _print_end(run: RunFolder, state: str) -> None:
    status, newest = run.status(), run.newest()
    print(f"{state} after {status.iteration} of {status.iterations} iterations")
    if newest:
        print(f"LoRA     {newest.path}")
    if run.curve_file.exists():
        print(f"curve    {run.curve_file}")
    if status.message:
        print(f"note     {status.message}")
    if state != "finished":
        root = "" if run.path.parent == Path("runs").resolve() else f" --runs {run.path.parent}"
        print(f"continue {program()} resume {run.id}{root}")


def _plot(run: RunFolder) -> None:
    from ..pictures.curves import plot_curve

    rows = run.read_metrics()
    if rows:
        plot_curve(rows, run.curve_file, run.id)


def _held(device, run: Path):
    from ..runs.devices import device_name, hold_device

    return hold_device(device_name(device.type, device.index), run)
