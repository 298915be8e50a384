"""Arguments that several commands share, and the configuration that they make."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import BUILT_IN, PRESETS, PolicyKind, TrainConfig, make_config, preset_for
from ..config.plain_yaml import DEEPEST, parse_value
from ..errors import UserError, meant, shown
from ..policies.parts import part_places
from ..runs.machines import (
    MOST_MACHINES,
    MOST_PROCESSES,
    Given,
    LaunchConfig,
    Machines,
    is_rendezvous,
    read_launch_config,
    readable,
)
from .numbers import number_between

# Options of commands that are settings by another name.
FLAGS = {
    "policy": "policy.source",
    "reward": "reward.source",
    "prompts": "prompts",
    "evaluation_prompts": "evaluation_prompts",
    "held_out": "held_out",
    "iterations": "iterations",
    "seed": "seed",
    "start_lora": "start_lora",
    "frozen_lora": "policy.loras",
    "steps": "evaluation.steps",
    "guidance": "evaluation.guidance",
    "image_guidance": "evaluation.image_guidance",
    "shift": "rollout.shift",
}
SIZES = ("height", "width", "frames")
RUN_HELP = "id, beginning of an id, folder, or `latest` (default)"


def add_tinyworld_policy(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--policy", choices=("vace", "phantom"), default="vace", help="which of TinyWorld's policies (default: vace)"
    )


def add_runs_folder(parser: ArgumentParser, default: str = "runs") -> None:
    parser.add_argument(
        "--runs", type=Path, default=Path(default), metavar="FOLDER", help=f"where runs are kept (default: {default})"
    )


def require_gpus(processes: int, for_rewards: bool = False) -> None:
    """Raises UserError for more processes than GPUs, where there are any; `for_rewards`: one more is the rewards'."""
    import torch

    count = torch.cuda.device_count()
    if count and processes + for_rewards > count:
        beside = ", and reward.device `own` takes one more" if for_rewards else ""
        raise UserError(f"--processes {processes}: give at most one for each of the {count} GPUs{beside}")


def add_launch(parser: ArgumentParser) -> None:
    """The options of a run on several processes and machines; see `launch_from`."""
    parser.add_argument(
        "--processes",
        type=number_between(1, MOST_PROCESSES),
        help="one per GPU of a machine; any number gives the same run (default: 1)",
    )
    parser.add_argument(
        "--machines",
        type=number_between(1, MOST_MACHINES),
        help="machines of the run, each with as many processes; this command is started on all of them (default: 1)",
    )
    parser.add_argument(
        "--machine-rank",
        type=number_between(0, MOST_MACHINES - 1),
        metavar="K",
        help="which of them this one is, from 0; only machine 0 reads settings and keeps the run (default: 0)",
    )
    parser.add_argument("--rendezvous", metavar="HOST:PORT", help="address of machine 0, and a port that is free there")


def add_machines_file(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--machines-file",
        metavar="FILE",
        help="take processes, machines, rank and address from a file that `accelerate config` wrote; options replace "
        "what it says",
    )


def launch_from(options: Namespace) -> LaunchConfig:
    """What the options of `add_launch` say, over those of --machines-file.

    Raises UserError where they do not fit each other, or as `read_launch_config`.
    """
    file, address = getattr(options, "machines_file", None), options.rendezvous
    if file == "":
        raise UserError("--machines-file is empty; give the path of a file as `accelerate config` writes it")
    if file is not None:
        given = Given(options.processes, options.machines, options.machine_rank, address)
        launch = read_launch_config(Path(file), given)
    else:
        machines = Machines(options.machines or 1, options.machine_rank or 0, address or "")
        launch = LaunchConfig(options.processes or 1, machines)
    count, rank = launch.machines.count, launch.machines.rank
    if rank >= count:
        raise UserError(f"--machine-rank {rank}: with --machines {count} it is at most {count - 1}")
    if address and options.machines is None and count == 1:
        raise UserError(f"--rendezvous {readable(address)}: one machine needs none; give --machines as well")
    if count > 1 and not is_rendezvous(launch.machines.rendezvous):
        raise UserError(
            f"--rendezvous `{readable(launch.machines.rendezvous)}`: give machine 0's name and a free port of it, "
            "e.g. 10.0.0.1:29500 or [fd00::1]:29500"
        )
    if count == 1:
        return replace(launch, machines=Machines())
    return launch


def add_wait(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--wait",
        action="store_true",
        help="when another run has the device, wait in the queue and start when it is free, in place of an error",
    )


def add_set(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="any setting, e.g. rollout.group_size=4; may be repeated; the command `settings` prints them all",
    )


def add_policy_and_preset(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--preset",
        choices=list(PRESETS),
        help="default: tiny for a built-in policy, else paper; for a Phantom its -phantom form is taken",
    )
    parser.add_argument(
        "--policy",
        help="a diffusers folder or .safetensors file of VACE or Phantom, `tinyworld` (default) or `tinyworld-phantom`",
    )
    add_set(parser)


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """`["rollout.steps=8", …]` as a nested dict; values are YAML: 8 is a number, [a, b] a list. Raises UserError."""
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not all(name.split(".")):
            raise UserError(f"--set {shown(setting)}: write it as NAME=VALUE, e.g. --set rollout.group_size=4")
        if name.count(".") > DEEPEST:
            raise UserError(f"there is no setting `{shown(name)}`; the command `settings` prints them all")
        try:
            _put(changes, name, parse_value(value))
        except UserError:
            raise
        except ValueError as error:
            raise UserError(
                f"--set {shown(name)}: the value cannot be read as YAML: {error}; put a text in quotes"
            ) from error
    return changes


def config_from(options: Namespace) -> TrainConfig:
    """The preset, changed by --set and then by the options that were given. Raises UserError for an impossible one."""
    changes, given = parse_settings(options.set), {}
    for option, name in FLAGS.items():
        value = getattr(options, option, None)
        if value is not None:
            _put(changes, name, value)
            given[name] = f"--{option.replace('_', '-')}"
    preset = _preset_of(options.preset, changes)
    config = make_config(preset, changes, given)
    refuse_misspelt(config, given)
    _check_preset(config)
    size = {name: getattr(options, name) for name in SIZES if getattr(options, name, None) is not None}
    if not size:
        return config
    video = (config.evaluation.video or config.video).model_dump() | size
    _put(changes, "evaluation.video", video)
    return make_config(preset, changes, given | {f"evaluation.video.{name}": f"--{name}" for name in size})


def refuse_misspelt(config: TrainConfig, given: Mapping[str, str]) -> None:
    """Raises UserError for an option that nearly names something built in, where there is no file of that name.

    given: settings that were given by an option -> that option.
    """
    built_in = {"policy.source": BUILT_IN, "reward.source": ["tinyworld"], "prompts": ["tinyworld"]}
    named = {"policy.source": config.policy.source, "reward.source": config.reward.source, "prompts": config.prompts}
    for name, known in built_in.items():
        text = named[name]
        missing = text not in known and not os.path.lexists(os.path.expanduser(text))
        if name in given and missing and (advice := meant(text, known)):
            raise UserError(f"{given[name]} {shown(text)}: there is no such file or folder{advice}")


def _preset_of(preset: str | None, changes: dict[str, Any]) -> str:
    """The form of `preset` for the given policy; without one, what the policy is trained with by default."""
    if preset and preset != preset_for(preset, "vace"):
        return preset
    policy = changes.get("policy")
    policy = policy if isinstance(policy, dict) else {}
    source = str(policy.get("source", "tinyworld"))
    module = policy.get("vace_module")
    kind = _kind_of(source, str(module) if module else None)
    return preset_for(preset or ("tiny" if source in BUILT_IN else "paper"), kind or "vace")


def _kind_of(source: str, vace_module: str | None) -> PolicyKind | None:
    """None where it cannot be recognised: loading the policy reports why."""
    if source in BUILT_IN:
        return BUILT_IN[source]
    path = part_places(source)["transformer"]
    if not os.path.exists(path):
        return None
    # Reading the headers of weights takes a second of imports.
    from ..policies.transformer_file import describe_transformer

    try:
        return describe_transformer(path, vace_module).kind
    except UserError:
        return None


def _check_preset(config: TrainConfig) -> None:
    kind, source = _kind_of(config.policy.source, config.policy.vace_module), config.policy.source
    if kind and config.preset != (fitting := preset_for(config.preset, kind)):
        raise UserError(
            f"preset `{config.preset}` does not fit {source}, which is a {kind} model; use --preset {fitting}, "
            "or another --policy"
        )


def _put(changes: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        changes = changes.setdefault(section, {})
        if not isinstance(changes, dict):
            raise UserError(f"{name} cannot be set: {section} was already given a value of its own")
    changes[last] = value
