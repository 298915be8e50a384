"""`train`, `resume`, and the process behind a run."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli import program
from ..config import TrainConfig
from ..errors import UserError
from ..prompts import resolve_prompts
from ..runs import launcher
from ..runs.folder import RunFolder
from ..runs.registry import is_alive
from .progress import Bar, Lines, quiet_libraries

if TYPE_CHECKING:
    from ..grpo.loop import Result

STOPPED = 130


def main(config: TrainConfig, root: Path, name: str | None, processes: int = 1) -> int:
    """Start a new run under `root` and stay with it to its end."""
    if config.prompts != "tinyworld":
        resolve_prompts(config)  # so that a bad CSV leaves no run behind
    return _attend(RunFolder.create(root, config, name), False, processes)


def resume(run: RunFolder, processes: int = 1) -> int:
    """Go on with a run. Raises UserError when it is running, is finished, or has no checkpoint."""
    if is_alive(run):
        raise UserError(
            f"run {run.id} is running (pid {run.status()['pid']}); stop it first with `{program()} runs stop {run.id}`"
        )
    if run.status()["state"] == "finished":
        raise UserError(
            f"run {run.id} is finished: all {run.config().iterations} iterations are done. To train further, start a new run "
            f"with --start-lora and its export in {run.exports}"
        )
    return _attend(run, True, processes)


def work(run: RunFolder, resuming: bool, share_devices: bool) -> int:
    """The body of a child started by the launcher: its words go to the run's log."""
    result = execute(run, resuming, Lines(), share_devices)
    print(f"{result.state} at iteration {result.iteration}", flush=True)
    return 0


def execute(run: RunFolder, resuming: bool, show: Bar | Lines, share_devices: bool = False) -> Result:
    """Train in this process (one of several under accelerate), holding its device; draw the curve at the end."""
    from accelerate import PartialState

    from ..grpo.loop import train

    quiet_libraries()
    state = PartialState()
    with contextlib.ExitStack() as stack:
        if not share_devices and (state.device.type != "cpu" or state.is_local_main_process):
            try:
                stack.enter_context(_held(state.device, run.id))
            except UserError as error:
                run.set_status(state="failed", last_error=str(error))
                raise
        result = train(run.config(), run, resume=resuming, progress=show)
        if state.is_main_process:
            _draw(run)
    return result


def _attend(run: RunFolder, resuming: bool, processes: int) -> int:
    print(f"run {run.path}")
    show = Bar() if sys.stderr.isatty() else Lines()
    try:
        if processes > 1:
            state = _follow(run, resuming, processes, show)
        else:
            run.clear_requests()
            run.set_status(state="starting", group=None)
            run.log(f"{'resumed' if resuming else 'started'} from the command line")
            state = execute(run, resuming, show).state
            run.log(state)
    except Exception:
        # The disk may be full of what went wrong.
        with contextlib.suppress(OSError):
            run.log(traceback.format_exc())
        raise
    finally:
        show.close()
    _say_how_it_ended(run, state)
    return 0 if state == "finished" else STOPPED


def _follow(run: RunFolder, resuming: bool, processes: int, show: Bar | Lines) -> str:
    """Start several processes and look on; Ctrl-C stops them as it stops one."""
    child = launcher.start(run, resuming, processes)
    try:
        while child.poll() is None:
            status = run.status()
            if isinstance(show, Bar) and status.get("phase"):
                done = status["iteration"] / status["iterations"]
                show.show(status["iteration"], status["iterations"], status["phase"], done, status.get("eta_seconds"))
            time.sleep(0.5)
    except KeyboardInterrupt:
        print("\nstopping at the next point that all processes share", file=sys.stderr)
        launcher.stop(run)
        child.wait()
    status = run.status()
    if child.returncode and status["state"] != "stopped":
        raise UserError(f"run {run.id} failed: {status.get('last_error') or ''}\n{run.log_tail()}")
    return status["state"]


def _say_how_it_ended(run: RunFolder, state: str) -> None:
    status = run.status()
    exports = sorted(run.exports.glob("*.safetensors"))
    print(f"{state} after {status['iteration']} of {status['iterations']} iterations")
    if exports:
        print(f"LoRA   {exports[-1]}")
    if (run.path / "curve.png").exists():
        print(f"curve  {run.path / 'curve.png'}")
    if state != "finished":
        root = "" if run.path.parent == Path("runs").resolve() else f" --runs {run.path.parent}"
        print(f"go on  {program()} resume {run.id}{root}")


def _draw(run: RunFolder) -> None:
    from ..runs.report import plot_curve

    rows = run.read_metrics()
    if rows:
        plot_curve(rows, run.path / "curve.png", run.id)


def _held(device, run_id: str):
    from ..runs.devices import device_name, hold_device

    return hold_device(device_name(device.type, device.index), run_id)
