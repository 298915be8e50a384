"""`train`: start a new run and stay with it to its end."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace

from ..config import TrainConfig
from ..errors import UserError
from ..runs.folder import RunFolder
from .memory_plan import check_memory, plan_lines
from .options import (
    add_launch,
    add_machines_file,
    add_policy_and_preset,
    add_runs_folder,
    add_wait,
    config_from,
    launch_from,
)
from .training import check_devices, find_models, join, train_to_end, use_gpus


def add_arguments(parser: ArgumentParser) -> None:
    add_policy_and_preset(parser)
    parser.add_argument("--reward", help="a reward checkpoint's folder, or `tinyworld` (default)")
    parser.add_argument("--prompts", help="CSV with the columns ref_paths and prompt, or `tinyworld` (default)")
    parser.add_argument("--evaluation-prompts", help="CSV of held-out items")
    parser.add_argument("--held-out", type=int, help="rows taken off the end of --prompts for evaluation instead")
    parser.add_argument("--iterations", type=int, help="training iterations (default: the preset's)")
    parser.add_argument("--seed", type=int, help="seed of everything that is random (default: 0)")
    parser.add_argument("--start-lora", help="a LoRA to start from")
    parser.add_argument(
        "--frozen-lora",
        action="append",
        metavar="FILE[:STRENGTH]",
        help="a LoRA that the policy is sampled with, such as a distilled 4-step LoRA: it acts during training and "
        "is not changed; may be repeated",
    )
    parser.add_argument("--name", help="how the run's id begins (default: the preset)")
    parser.add_argument(
        "--plan",
        action="store_true",
        help="print the expected GPU memory by phase and the time of an iteration; loads and trains nothing",
    )
    add_wait(parser)
    add_launch(parser)
    add_machines_file(parser)
    add_runs_folder(parser)


def main(options: Namespace) -> int:
    """Returns 0 when the run finished, 130 when it was stopped. Raises UserError, and leaves no run, for bad inputs."""
    launch = launch_from(options)
    use_gpus(launch)
    if launch.machines.rank:
        return join(options.runs, launch.processes, launch.machines)
    config = config_from(options).with_absolute_paths()
    check_inputs(config)
    check_processes(config, launch.processes)
    if options.plan:
        for line in plan_lines(config, launch.processes):
            print(line)
        return 0
    devices = check_devices(options.runs, config, launch.processes, options.wait)
    if config.policy.fp8:
        check_fp8(config)
    if not options.wait:  # what is free now is not what will be free at its turn; it is checked then
        check_memory(config, launch.processes)
    run = RunFolder.create(options.runs, config, options.name)
    return train_to_end(run, False, launch.processes, devices if options.wait else (), launch.machines)


def check_processes(config: TrainConfig, processes: int) -> None:
    """Raises UserError where so many processes cannot share the work as the configuration says."""
    from ..grpo.ranks import require_context

    require_context(config.parallel.context, processes)
    if config.memory.plan == "sharded":
        from ..memory.plan import require_sharding

        require_sharding(config, processes)


def check_fp8(config: TrainConfig) -> None:
    """Raises UserError where `policy.fp8` cannot run."""
    import torch
    from accelerate import PartialState

    from ..policies.fp8 import require_fp8

    require_fp8(PartialState().device, getattr(torch, config.policy.dtype))


def check_inputs(config: TrainConfig) -> None:
    """Raises UserError for what the configuration names and cannot be used, before anything is loaded or written."""
    from ..runs.inputs import check_prompts

    policy = config.policy
    find_models(config)
    check_prompts(config)
    if config.start_lora and not os.path.exists(config.start_lora):
        raise UserError(f"there is no LoRA {config.start_lora}; give a .safetensors file or a folder of PEFT")
    # What follows takes seconds to import.
    from ..grpo.ranks import require_trackers
    from ..policies.frozen_loras import check_frozen
    from ..policies.load import recognise
    from ..rewards.several import find_rewards

    find_rewards(config)
    check_frozen(policy, recognise(policy.source, policy.vace_module))
    require_trackers(config.trackers)
    if config.start_lora:
        from ..lora.formats import read_lora

        lora = read_lora(config.start_lora)
        if lora.differences:
            raise UserError(
                f"start_lora {config.start_lora} changes {next(iter(lora.differences))} without factors, which "
                "training cannot continue; choose a LoRA of A and B factors alone"
            )
        ranks = sorted({lora.rank(name) for name in lora.modules})
        if ranks != [config.lora.rank]:
            raise UserError(
                f"--start-lora {config.start_lora} has rank {', '.join(map(str, ranks))}, but lora.rank is "
                f"{config.lora.rank}; both must be the same"
            )
