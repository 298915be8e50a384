"""`resume`: continue a run and stay with it to its end."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from ..errors import UserError, command_line
from ..runs.registry import find, refresh
from ..runs.starting import was_started
from .options import RUN_HELP, add_machines, add_processes, add_runs_folder, add_wait, machines_from
from .training import check_devices, join, train_to_end


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", default="latest", help=RUN_HELP)
    add_wait(parser)
    add_processes(parser)
    add_machines(parser)
    add_runs_folder(parser)


def main(options: Namespace) -> int:
    """As `train`. Raises UserError, and leaves the run as it is, when it runs, is finished, or its device is busy."""
    machines = machines_from(options)
    if machines.rank:
        return join(options.runs, options.processes, machines)
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
    devices = check_devices(options.runs, run.settings(), options.processes, options.wait)
    return train_to_end(run, was_started(run), options.processes, devices if options.wait else (), machines)
