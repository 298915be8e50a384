"""Training a run from the command line: shared by `train`, `resume`, `demo` and `work`."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import current_thread, main_thread
from typing import TYPE_CHECKING

from ..errors import UserError, command_line
from ..files import write_atomic
from ..runs import launcher, starting
from ..runs.folder import RunFolder
from ..runs.heartbeat import heartbeat
from ..runs.machines import LaunchConfig, Machines
from ..runs.process_group import ANOTHER_ENDED, ANOTHER_MACHINES, GRACE_SECONDS, among_machines, is_main, run_processes
from ..runs.progress import ProgressReport
from ..runs.queue import wait_turn
from ..runs.status import waits_for_machines
from .options import require_gpus
from .progress import Bar, Lines, open_display, quiet_libraries

if TYPE_CHECKING:
    from ..config import RunConfig, TrainConfig
    from ..grpo.ranks import Ranks
    from ..grpo.trainer import Result
    from ..grpo.watch import RankWatch

STOPPED = 130
SHARED = "shared.txt"
"""By its content the processes of other machines know the disk of the first."""
MOST_THREADS_BESIDE_GPU = 8
CONNECTION_ENDED = re.compile("connection (closed|reset|refused)|remote process exited|broken pipe", re.IGNORECASE)


def train_to_end(
    run: RunFolder, resuming: bool, processes: int, wait: Sequence[str] = (), machines: Machines = launcher.ALONE
) -> int:
    """Train the run in this process or in several, and print how it ended; returns the exit status.

    wait: names of the devices that it waits for in the queue; it is ended with this program while it waits. machines:
    those that the run is on, each with so many processes.
    """
    print_now(f"run {run.path}")
    starting.claim(run)
    show = open_display()
    try:
        if processes > 1 or machines.count > 1:
            state = _follow(run, resuming, processes, show, wait, machines)
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
    run: RunFolder | Path, resuming: bool, show: Callable[[ProgressReport], None], share_devices: bool = False
) -> Result:
    """Train in this process (one of several under the launcher), holding its device; plot the curve.

    run: on other machines than the first the folder that keeps runs; the run is that of machine 0. share_devices: do
    not hold the device, because others use it too, or because it is held already.
    """
    try:
        return _execute(run, resuming, show, share_devices)
    except KeyboardInterrupt:
        # While it loads nothing notes the signal (runs/interrupt.py).
        if isinstance(run, RunFolder) and is_main() and run.status().active:
            run.set_status(state="stopped", message="")
        raise


def _execute(
    run: RunFolder | Path, resuming: bool, show: Callable[[ProgressReport], None], share_devices: bool
) -> Result:
    try:
        if isinstance(run, RunFolder) and run.kind == "policy":
            find_models(run.config())
    except UserError as error:
        run.set_status(state="failed", last_error=str(error))
        raise
    quiet_libraries()
    from ..grpo.ranks import Ranks
    from ..grpo.trainer import train
    from ..preference.folder import PairFolder
    from ..preference.stored import voted_pairs
    from ..runs.devices import device_name, hold_device
    from ..runs.inputs import run_inputs
    from .reward_run import train_reward_run

    copied = False
    with contextlib.ExitStack() as stack:
        try:
            of_policy = not isinstance(run, RunFolder) or run.kind == "policy"
            if isinstance(run, RunFolder):
                config = run.settings()
                with ended_at_once():
                    ranks = Ranks(config.process_timeout_minutes, config.trackers, run.path) if of_policy else Ranks()
            else:
                with ended_at_once():
                    ranks = Ranks()
            if ranks.on_several_machines:
                run, resuming, copied = same_run(ranks, run, resuming)
                config = run.settings()
                of_policy = run.kind == "policy"
            if of_policy:
                ranks.form_groups(config.parallel.context)
            limit_threads(ranks)
            watch = stack.enter_context(watched(ranks, run)) if ranks.count > 1 else None
            stack.enter_context(heartbeat(run, rank=ranks.rank, signs=watch.ages if watch else list))
            if not share_devices and (ranks.device.type != "cpu" or ranks.is_local_main):
                stack.enter_context(hold_device(device_name(ranks.device.type, ranks.device.index), run.path))
                rewards = ranks.reward_device(config.reward) if of_policy else None
                if rewards not in (None, ranks.device) and ranks.is_local_main:
                    stack.enter_context(hold_device(device_name(rewards.type, rewards.index), run.path))
            if of_policy:
                inputs = run_inputs(config)
            else:
                inputs = voted_pairs(PairFolder(config.pairs), config.pairs_bytes, config.held_out)
        except UserError as error:
            if isinstance(run, RunFolder):
                run.set_status(state="failed", last_error=str(error))
            raise
        work = train if of_policy else train_reward_run
        with lost_machine_explained(ranks, run):
            result = work(config, run, inputs, resume=resuming, progress=show, ranks=ranks)
        if watch:
            watch.close()
        ranks.close()
    if copied:
        run.set_status(state=result.state, message="")
    # The device is free for another run by now.
    if ranks.is_main:
        _plot(run)
    return result


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """Within the block a stop ends this process of a run on several machines: what it calls to wait for the others
    listens to nothing, and nothing is in flight."""
    stops = [signal.SIGINT, signal.SIGTERM] if among_machines() and current_thread() is main_thread() else []
    before = {number: signal.signal(number, signal.SIG_DFL) for number in stops}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def lost_machine_explained(ranks: Ranks, run: RunFolder) -> Iterator[None]:
    """Raises UserError, which becomes the run's error, where an exchange in the block fails because a process of
    another machine has ended."""
    try:
        yield
    except RuntimeError as error:  # as gloo, NCCL and torch's stores report it
        if not (ranks.on_several_machines and CONNECTION_ENDED.search(str(error))):
            raise
        text = f"{ANOTHER_MACHINES}; see the log on that machine; resume continues from the last checkpoint"
        if ranks.is_main and run.status().last_error in ("", str(error)):
            run.set_status(state="failed", last_error=text)
        raise UserError(text) from error


@contextlib.contextmanager
def watched(ranks: Ranks, run: RunFolder) -> Iterator[RankWatch]:
    """Within the block a process that is missing ends this one: its main thread may wait for it in vain."""
    from ..grpo.watch import RankWatch

    def lost(reason: str) -> None:
        if ranks.is_main:
            run.set_status(state="failed", last_error=reason)
        run.log(reason)
        os.kill(os.getpid(), ANOTHER_ENDED)
        time.sleep(GRACE_SECONDS)
        os._exit(1)

    watch = RankWatch(ranks.rank, ranks.count, ranks.broadcast, lost)
    try:
        yield watch
    finally:
        watch.close()


def same_run(ranks: Ranks, run: RunFolder | Path, resuming: bool) -> tuple[RunFolder, bool, bool]:
    """The run of machine 0, whether it resumes, and whether this process keeps the status of a copy of its folder.

    Where the disk is not shared the folder has only settings, logs and encodings.
    """
    token = secrets.token_hex()
    if ranks.is_main:
        write_atomic(run.path / "logs" / SHARED, token)
    settings = (run.id, run.settings().to_yaml(), token, resuming) if ranks.is_main else None
    run_id, settings, token, resuming = ranks.broadcast(settings)
    if isinstance(run, RunFolder):
        ranks.on_all_ranks(lambda: None)
        return run, resuming, False
    ranks.on_all_ranks(lambda: RunFolder.copy_of(run, run_id, settings) if ranks.is_local_main else None)
    folder = RunFolder(run / run_id)
    if ranks.is_local_main:
        print_now(f"run {folder.path}")
    marker = folder.path / "logs" / SHARED
    own = ranks.is_local_main and not (marker.is_file() and marker.read_text(encoding="ascii") == token)
    log_to(folder, ranks.rank)
    if own:
        folder.prepare()
        folder.set_status(state="running", message="its first machine has its curve, clips and LoRAs")
    return folder, resuming, own


def log_to(run: RunFolder, rank: int) -> None:
    """What this process writes from here on, tracebacks of crashed libraries included, goes to its own log."""
    log = run.rank_log(rank)
    log.parent.mkdir(exist_ok=True)
    with open(log, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


def find_models(config: TrainConfig) -> None:
    """Raises UserError for models that are not there, before what takes seconds to import."""
    from ..policies.parts import find_parts
    from ..rewards.folder import find_reward

    policy = config.policy
    find_parts(policy.source, policy.text_encoder, policy.vae, policy.vace_module)
    find_reward(config.reward)


def limit_threads(ranks) -> None:
    """Limit the CPU threads of this process to its share of the cores, unless OMP_NUM_THREADS is set.

    On a GPU the share is that of one GPU: processes that take as many threads as there are cores each would bring one
    another to a halt.
    """
    import torch

    on_gpu = ranks.device.type == "cuda"
    if "OMP_NUM_THREADS" not in os.environ:
        sharers = torch.cuda.device_count() if on_gpu else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, launcher.cores() // max(1, sharers)))
    if on_gpu:
        # What is left for the CPU are many small tensors: with 64 threads each, three processes took minutes for the
        # copies of a checkpoint, waiting for one another.
        torch.set_num_threads(min(torch.get_num_threads(), MOST_THREADS_BESIDE_GPU))


def check_devices(root: Path, config: RunConfig, processes: int = 1, wait: bool = False) -> list[str]:
    """The names of the devices that so many processes of the run would use.

    Raises UserError when one of them is not there, or, unless the run is to `wait`, is held by another run (one in
    `root` may just be starting).
    """
    from accelerate import PartialState

    device = PartialState().device
    own = config.rewards_have_a_device
    wanted = processes + own
    gpus = [] if device.type != "cuda" else list(range(wanted)) if wanted > 1 else [device.index or 0]
    if len(gpus) > 1:
        require_gpus(processes, own)
    return starting.devices_for(root, device.type, gpus, wait)


def use_gpus(launch: LaunchConfig) -> None:
    """This process and those that it starts see the GPUs of a launch configuration alone; before CUDA is used."""
    if launch.gpus is not None:
        os.environ.update(launcher.visible_devices(launch.gpus))


def print_now(text: str) -> None:
    """Print a line at once, also into a pipe; a reader that has ended does not end a run."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def join(runs: Path, processes: int, machines: Machines) -> int:
    """Take part in the run of machine 0 with so many processes; returns the exit status. Ctrl-C stops the run.

    runs: where runs are kept on this machine; it may be machine 0's folder on a shared disk.
    """
    print_now(f"machine {machines.rank} of {machines.count} joins the run at {machines.rendezvous}")
    command = [*launcher.PROGRAM, str(runs.absolute()), "--join"]
    failure = run_processes(command, processes, machines, launcher.child_environment(processes))
    if failure is not None:
        raise UserError(f"{failure}; the logs of this machine's processes are in the run's folder below {runs}")
    return 0


def _follow(
    run: RunFolder, resuming: bool, processes: int, show: Bar | Lines, wait: Sequence[str], machines: Machines
) -> str:
    """Start several processes and show their progress; Ctrl-C stops them as it stops one."""
    child = launcher.start(run, resuming, processes, wait=wait, machines=machines)
    reported, waits = run.status().iteration, ""
    try:
        while child.poll() is None:
            status = run.status()
            if (status.state == "queued" or waits_for_machines(status)) and status.message != waits:
                waits = status.message
                print_now(waits)
            reported = _report(run, reported, show)
            time.sleep(0.5)
    except KeyboardInterrupt:
        at_once = waits_for_machines(run.status())
        with contextlib.suppress(OSError):  # a closed terminal
            print("\nstopping" if at_once else "\nstopping after the step in flight", file=sys.stderr)
        launcher.stop(run)
        child.wait()
    _report(run, reported, show)
    status = run.status()
    if child.returncode and status.state != "stopped":
        tail = run.log_tail()
        shown = f"error: {status.last_error}" in tail  # a user's error, of which the log has no more
        raise UserError(f"run {run.id} failed: {status.last_error}" + ("" if shown else f"\n{tail}"))
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
    if run.has_reward():
        print(f"reward   {run.reward_folder}")
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
