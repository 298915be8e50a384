"""`resume`: continue a run and stay with it to its end."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from ..errors import UserError, command_line
from ..runs.registry import find, refresh
from ..runs.starting import was_started
from .options import RUN_HELP, add_launch, add_machines_file, add_runs_folder, add_wait, launch_from
from .training import check_devices, join, train_to_end, use_gpus


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", default="latest", help=RUN_HELP)
    add_wait(parser)
    add_launch(parser)
    add_machines_file(parser)
    add_runs_folder(parser)


def main(options: Namespace) -> int:
    """As `train`. Raises UserError, and leaves the run as it is, when it runs, is finished, or its device is busy."""
    launch = launch_from(options)
    use_gpus(launch)
    if launch.machines.rank:
        return join(options.runs, launch.processes, launch.machines)
    run = find(options.runs, options.run)
    status = refresh(run)
    if status.active:
        raise UserError(
            f"run {run.id} is {status.state} (pid {status.pid}); stop it first with "
            f"`{command_line('runs', 'stop', run.path)}`"
        )
    if status.state == "finished":
        raise UserError(
            f"run {run.id} is finished: all {run.settings().iterations} iterations are done. To train further, start a "
            + (
                f"new run with --start-lora and its export in {run.exports_folder}"
                if run.kind == "policy"
                else f"new one from its reward, {run.reward_folder}"
            )
        )
    devices = check_devices(options.runs, run.settings(), launch.processes, options.wait)
    return train_to_end(run, was_started(run), launch.processes, devices if options.wait else (), launch.machines)
