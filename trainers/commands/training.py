"""Training a run from the command line: shared by `train`, `resume`, `demo` and `work`."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError, command_line
from ..runs import launcher, starting
from ..runs.folder import RunFolder
from ..runs.heartbeat import heartbeat
from ..runs.progress import ProgressReport
from ..runs.queue import wait_turn
from .progress import Bar, Lines, open_display, quiet_libraries

if TYPE_CHECKING:
    from ..grpo.trainer import Result

STOPPED = 130
MOST_THREADS_BESIDE_GPU = 8


def train_to_end(run: RunFolder, resuming: bool, processes: int, wait: Sequence[str] = ()) -> int:
    """Train the run in this process or in several, and print how it ended; returns the exit status.

    wait: names of the devices that it waits for in the queue; it is ended with this program while it waits.
    """
    print(f"run {run.path}", flush=True)
    starting.claim(run)
    show = open_display()
    try:
        if processes > 1:
            state = _follow(run, resuming, processes, show, wait)
        else:
            run.log(f"{'resumed' if resuming else 'started'} from the command line")
            with wait_turn(run, wait, print_now) if wait else contextlib.nullcontext(True) as turn:
                state = execute(run, resuming, show, share_devices=bool(wait)).state if turn else "stopped"
            run.log(state)
    except Exception:
        run.log(traceback.format_exc())
        raise
    finally:
        show.close()
    _print_end(run, state)
    return 0 if state == "finished" else STOPPED


def execute(
    run: RunFolder, resuming: bool, show: Callable[[ProgressReport], None], share_devices: bool = False
) -> Result:
    """Train in this process (one of several under accelerate), holding its device; plot the curve at the end.

    share_devices: do not hold it, because others use it too, or because it is held already.
    """
    quiet_libraries()
    from ..grpo.ranks import Ranks
    from ..grpo.trainer import train
    from ..runs.devices import device_name, hold_device
    from ..runs.inputs import run_inputs

    config, ranks = run.config(), None
    with contextlib.ExitStack() as stack:
        try:
            ranks = Ranks(config.process_timeout_minutes, config.trackers, run.path, config.parallel.context)
            limit_threads(ranks)
            if ranks.is_main:
                stack.enter_context(heartbeat(run))
            if not share_devices and (ranks.device.type != "cpu" or ranks.accelerator.is_local_main_process):
                stack.enter_context(hold_device(device_name(ranks.device.type, ranks.device.index), run.path))
            inputs = run_inputs(config)
        except UserError as error:
            run.set_status(state="failed", last_error=str(error))
            raise
        except KeyboardInterrupt:
            # In a run of several processes it is a SIGTERM because another one has failed.
            if ranks and ranks.count == 1:
                run.set_status(state="stopped")
            raise
        result = train(config, run, inputs, resume=resuming, progress=show, ranks=ranks)
    # The device is free for another run by now.
    if ranks.is_main:
        _plot(run)
    return result


def limit_threads(ranks) -> None:
    """Limit the CPU threads of this process to its share of the cores, unless OMP_NUM_THREADS is set.

    On a GPU the share is that of one GPU: processes that take as many threads as there are cores each would bring one
    another to a halt.
    """
    import os

    import torch

    on_gpu = ranks.device.type == "cuda"
    if "OMP_NUM_THREADS" not in os.environ:
        sharers = torch.cuda.device_count() if on_gpu else ranks.count
        torch.set_num_threads(max(1, launcher.cores() // max(1, sharers)))
    if on_gpu:
        # What is left for the CPU are many small tensors: with 64 threads each, three processes took minutes for the
        # copies of a checkpoint, waiting for one another.
        torch.set_num_threads(min(torch.get_num_threads(), MOST_THREADS_BESIDE_GPU))


def check_devices(root: Path, processes: int = 1, wait: bool = False) -> list[str]:
    """The names of the devices that so many processes would use.

    Raises UserError when one of them is not there, or, unless the run is to `wait`, is held by another run (one in
    `root` may just be starting).
    """
    import torch
    from accelerate import PartialState

    device = PartialState().device
    gpus = [] if device.type != "cuda" else list(range(processes)) if processes > 1 else [device.index or 0]
    if len(gpus) > max(1, torch.cuda.device_count()):
        raise UserError(f"--processes {processes}: give at most one for each of the {torch.cuda.device_count()} GPUs")
    return starting.devices_for(root, device.type, gpus, wait)


def print_now(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


def _follow(run: RunFolder, resuming: bool, processes: int, show: Bar | Lines, wait: Sequence[str]) -> str:
    """Start several processes and show their progress; Ctrl-C stops them as it stops one."""
    child = launcher.start(run, resuming, processes, wait=wait)
    reported, queued = run.status().iteration, ""
    try:
        while child.poll() is None:
            status = run.status()
            if status.state == "queued" and status.message != queued:
                queued = status.message
                print_now(queued)
            reported = _report(run, reported, show)
            time.sleep(0.5)
    except KeyboardInterrupt:
        print("\nstopping after the step in flight", file=sys.stderr)
        launcher.stop(run)
        child.wait()
    _report(run, reported, show)
    status = run.status()
    if child.returncode and status.state != "stopped":
        raise UserError(f"run {run.id} failed: {status.last_error}\n{run.log_tail()}")
    return status.state


def _report(run: RunFolder, reported: int, show: Bar | Lines) -> int:
    """Show the run's status, with the metrics of an iteration beyond `reported`; returns the iteration shown."""
    status = run.status()
    iteration, iterations = status.iteration, status.iterations
    if status.state != "running" or not iterations:
        return reported
    rows = run.training() if iteration > reported else []
    metrics = rows[-1] if rows else {}
    fraction = iteration / iterations
    show(ProgressReport(iteration, iterations, status.phase, fraction, status.eta_seconds, metrics, status.message))
    return iteration


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
        print(f"continue {command_line('resume', run.path)}")


def _plot(run: RunFolder) -> None:
    from ..pictures.curves import plot_curve

    rows = run.read_metrics()
    if rows:
        plot_curve(rows, run.curve_file, run.id)
