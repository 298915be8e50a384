"""From the widgets of Train to the settings of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import comfy.model_management as management
import torch
from comfy_api.latest import io

from ..trainers.config import BUILT_IN, RECIPES, make_config, preset_for
from ..trainers.errors import UserError
from ..trainers.prompts import PromptSet
from ..trainers.runs.inputs import TINYWORLD_ITEMS
from ..trainers.runs.machines import LaunchConfig
from ..trainers.runs.registry import is_alive
from ..trainers.runs.starting import freeze_prompts
from . import folders
from .inputs import require_choice
from .sampling import LARGEST, LONGEST, STEP, size_problem
from .types import LazyPolicy, LazyReward

AUTO, CPU, ALL_GPUS, ONE_FOR_REWARDS = "auto", "CPU", "all GPUs", "all GPUs, the last for the rewards"
REFUSE, WAIT = "end with an error", "wait in the queue"
WHEN_BUSY = [REFUSE, WAIT]
NO_LORA = "none"
MOST_HELD_OUT = 32  # rows
PRESETS = "identity_grpo_presets"  # where the editor finds the values of each preset, in the options of `preset`
FIRST = "fast"  # the preset whose values a new node shows


@cache
def preset_values() -> dict[str, dict[str, float]]:
    """The values that each preset gives to the widgets of Train; the same for VACE and Phantom."""

    def values(recipe: str) -> dict[str, float]:
        config = make_config(recipe, {})
        return {
            "iterations": config.iterations,
            "learning_rate": config.optim.learning_rate,
            "groups_per_update": config.rollout.groups_per_update,
            "width": config.video.width,
            "height": config.video.height,
            "frames": config.video.frames,
            "evaluate_every": config.evaluation.every,
        }

    return {recipe: values(recipe) for recipe in RECIPES}


def preset_inputs() -> list[io.Input]:
    """The widgets that a preset fills in; in a graph that leaves one out, the preset decides."""
    size = "Size of the training videos in pixels, a multiple of 16; the preset's fits its model."
    return [
        _number(io.Int, "iterations", 1, 100000, tooltip="Training iterations: rollouts, rewards, then updates."),
        _number(
            io.Float,
            "learning_rate",
            1e-7,
            1.0,
            step=1e-6,
            round=1e-7,
            tooltip="Learning rate of the LoRA; lower it when the reward rises and then falls.",
        ),
        _number(
            io.Int,
            "groups_per_update",
            1,
            1024,
            advanced=True,
            tooltip="Prompts that one update averages over; below 16 the method hardly improves.",
        ),
        _number(io.Int, "width", STEP, LARGEST, step=STEP, advanced=True, tooltip=size),
        _number(io.Int, "height", STEP, LARGEST, step=STEP, advanced=True, tooltip=size),
        _number(io.Int, "frames", 1, LONGEST, step=4, advanced=True, tooltip="Frames of the training videos, 4n+1."),
        _number(io.Int, "evaluate_every", 1, 100000, tooltip="Iterations between two evaluations on held-out prompts."),
    ]


def _number(kind: type, name: str, least: float, most: float, **options) -> io.Input:
    """An input that the preset fills in."""
    return kind.Input(name, default=preset_values()[FIRST][name], min=least, max=most, optional=True, **options)


def devices_input() -> io.Input:
    """The widget that says where a run trains."""
    return io.Combo.Input(
        "devices",
        options=device_choices(),
        default=AUTO,
        optional=True,
        tooltip="Where to train. auto: every GPU but ComfyUI's; the only GPU, which ComfyUI then frees; without a GPU "
        "the CPU. One run at a time uses a device.",
    )


def seed_input(default: int, **options: Any) -> io.Input:
    """The widget with a run's seed."""
    return io.Int.Input(
        "seed",
        default=default,
        min=0,
        max=2**31 - 1,
        optional=True,
        control_after_generate=False,
        tooltip="Seed of everything random in the run. Another seed is another run.",
        **options,
    )


def when_busy_input() -> io.Input:
    """The widget that says what to do when the device is taken."""
    return io.Combo.Input(
        "when_busy",
        options=WHEN_BUSY,
        default=REFUSE,
        optional=True,
        advanced=True,
        tooltip="When another run has the device: end with an error, or wait in the queue and start when it is free.",
    )


def device_choices() -> list[str]:
    """`auto`, the GPUs that PyTorch sees, all of them in two ways, the CPU."""
    count = torch.cuda.device_count()
    return [AUTO, *(f"GPU {i}" for i in range(count)), *([ALL_GPUS, ONE_FOR_REWARDS] if count > 1 else []), CPU]


def chosen_gpus(choice: str) -> list[int]:
    """The CUDA devices of a choice; empty for the CPU. Raises UserError for a device that is not there."""
    require_choice("devices", choice, device_choices())
    count = torch.cuda.device_count()
    if choice == CPU or not count:
        return []
    if choice in (ALL_GPUS, ONE_FOR_REWARDS):
        return list(range(count))
    if choice != AUTO:
        return [int(choice.removeprefix("GPU "))]
    own = management.get_torch_device()
    return [i for i in range(count) if own.type != "cuda" or i != own.index] or [0]


def machines_input() -> io.Input:
    """The widget that says on which machines a run trains."""
    return io.Combo.Input(
        "machines",
        options=folders.machine_choices(),
        default=folders.THIS_MACHINE,
        optional=True,
        advanced=True,
        tooltip="Train on several machines, or with the processes and GPUs of a file that accelerate config wrote; put "
        "it into the folder user/__identity_grpo/machines of ComfyUI. This one must be machine 0.",
    )


def chosen_launch(machines: str, devices: str) -> LaunchConfig:
    """What a run starts on this machine, with the CUDA devices to use; none of them: the CPU.

    Raises UserError for a file that cannot be used here, and for `devices` beside one.
    """
    launch = folders.launch_config(machines)
    if launch is None:
        return LaunchConfig(gpus=tuple(chosen_gpus(devices)))
    if devices != AUTO:
        raise UserError(f"devices `{devices}`: `{machines}` says where the run trains; set devices to `{AUTO}`")
    if launch.machines.rank:
        raise UserError(
            f"`{machines}` has machine_rank {launch.machines.rank}, and ComfyUI runs on machine 0, which keeps the "
            "run; set it to 0, and start the others by the command that the node shows then"
        )
    count = torch.cuda.device_count()
    gpus = tuple(range(count)) if launch.gpus is None else launch.gpus
    if gpus and (max(gpus) >= count or len(gpus) < launch.processes):
        raise UserError(
            f"`{machines}` takes {launch.processes} GPUs of this machine ({', '.join(map(str, gpus))}), and it has "
            f"{count}; change num_processes or gpu_ids"
        )
    return replace(launch, gpus=gpus[: launch.processes])


def free_memory(gpus: Sequence[int]) -> None:
    """Before a run starts on these CUDA devices: ComfyUI's models leave its own if it is one of them."""
    own = management.get_torch_device()
    if own.type == "cuda" and own.index in gpus:
        management.unload_all_models()
        management.soft_empty_cache()


def preset_of(choice: str, policy: LazyPolicy) -> str:
    """The preset for this policy. Raises UserError for TinyWorld's with another model: its videos are far too small."""
    built_in = policy.config.source in BUILT_IN
    if choice == "tiny" and not built_in:
        raise UserError("preset `tiny` is TinyWorld's (videos of 80x48); choose `fast` or `paper` for this model")
    return preset_for(choice if choice != AUTO else "tiny" if built_in else "fast", policy.kind)


def start_lora_file(choice: str) -> str | None:
    """The file of the LoRA to start from; None for none.

    Raises UserError for the LoRA of a run that still trains: queued again it would be another file and start another
    run.
    """
    if choice == NO_LORA:
        return None
    run = folders.followed(choice)
    if run is not None and is_alive(run):
        raise UserError(_still_changes("start_lora", choice))
    return str(folders.find_lora(choice).path)


def _frozen_lora(file: folders.LoraFile, strength: float) -> str:
    """A LoRA of the policy as `policy.loras` names it. Raises UserError as `start_lora_file`."""
    run = folders.followed(file.label)
    if run is not None and is_alive(run):
        raise UserError(_still_changes("the policy's LoRA", file.label))
    return f"{file.path}:{strength:g}"


def _still_changes(what: str, choice: str) -> str:
    return (
        f"{what} `{choice}` still changes; wait for the run's end, stop it, or choose one of its files "
        "(identity_grpo/…)"
    )


def model_settings(policy: LazyPolicy, reward: LazyReward, on_gpu: bool, own: bool = False) -> dict:
    """The configuration's sections of both models. A CPU computes in float32 whatever ComfyUI's own device prefers.

    own: the rewards have a GPU to themselves. LoRAs that act on the policy are frozen parts of what is trained. Raises
    UserError for one that still changes.
    """

    def dtype(wanted: str) -> str:
        return wanted if on_gpu else "float32"

    loras = [_frozen_lora(file, strength) for file, strength in policy.loras if strength]
    taken = {name: getattr(reward.config, name) for name in ("source", "base_model", "fps")}
    device = {"device": "own"} if own else {}
    return {
        "policy": {**policy.config.model_dump(), "loras": loras, "dtype": dtype(policy.config.dtype)},
        "reward": {**taken, **device, "dtype": dtype(reward.config.dtype)},
    }


def video_settings(width: int | None, height: int | None, frames: int | None) -> dict[str, int | None]:
    """The section `video`; None leaves a number to the preset. Raises UserError for an impossible size."""
    if (width is None) != (height is None):
        raise UserError("give both width and height, or neither for the preset's size")
    if problem := size_problem(width, height, frames):
        raise UserError(problem)
    return {"width": width, "height": height, "frames": frames}


def held_out_rows(count: int) -> int:
    """How many of `count` rows are held out for evaluation where no evaluation_set is connected."""
    return max(1, min(MOST_HELD_OUT, count // 10))


def check_prompt_sets(train: PromptSet, evaluation: PromptSet | None, groups_per_update: int) -> None:
    """Raises UserError when the sets cannot be trained and measured on: swapped, too few rows, or rows in both."""
    for name, given, wrong, right in (
        ("prompt_set", train, "held-out", "training"),
        ("evaluation_set", evaluation, "train-", "held out"),
    ):
        if given is not None and given.source == "tinyworld" and given[0].id.startswith(f"tiny-{wrong}"):
            raise UserError(f"`{name}` is TinyWorld's other set; choose `TinyWorld: {right} (built in)`")
    if train.source == "tinyworld":
        most = TINYWORLD_ITEMS[1]
        if groups_per_update > most:
            raise UserError(f"TinyWorld has {most} training prompts; set `groups_per_update` to {most} or less")
        return
    rows = len(train) if evaluation is not None else len(train) - held_out_rows(len(train))
    if rows < groups_per_update:
        raise UserError(_too_few(len(train), rows, groups_per_update))
    _check_overlap(train, evaluation, rows)


def prompt_settings(train: PromptSet, evaluation: PromptSet | None) -> dict:
    """The configuration's names of both sets, which are kept in files of their own."""
    root = folders.runs_root() / "prompt_sets"
    names = {"prompts": freeze_prompts(train, root)}
    if evaluation is not None:
        return names | {"evaluation_prompts": freeze_prompts(evaluation, root)}
    return names if train.source == "tinyworld" else names | {"held_out": held_out_rows(len(train))}


def not_left_to_preset(changes: dict) -> dict:
    """Without the settings that are empty, which leaves them to the preset; a seed of 0 is a seed."""
    kept = {}
    for name, value in changes.items():
        value = not_left_to_preset(value) if isinstance(value, dict) else value
        if value or name == "seed":
            kept[name] = value
    return kept


def _too_few(count: int, rows: int, needed: int) -> str:
    """The message for a prompt set of `count` rows, of which `rows` are left to train on."""
    has, remedies = f"`prompt_set` has {count} row{'s' * (count != 1)}", [f"Give it {needed} rows"]
    if held_out := count - rows:
        enough = next(n for n in range(needed, 2 * needed + MOST_HELD_OUT) if n - held_out_rows(n) >= needed)
        has += f", {held_out} of them held out for evaluation"
        remedies = [f"Give it {enough} rows", "connect an `evaluation_set`"]
    if rows:
        remedies.append(f"set `groups_per_update` to {rows} (below 16 the method hardly improves)")
    remedy = ", ".join(remedies[:-1]) + f" or {remedies[-1]}" if len(remedies) > 1 else remedies[0]
    return f"{has}, but an update needs {needed} rows to train on. {remedy}"


def _check_overlap(train: PromptSet, evaluation: PromptSet | None, rows: int) -> None:
    """Raises UserError when an item is both trained and measured on."""
    trained = {item.content(): item.id for item in train.items[:rows]}
    for item in evaluation if evaluation is not None else train.items[rows:]:
        same = trained.get(item.content())
        if same is not None:
            where = (
                "`evaluation_set` is also in `prompt_set`" if evaluation is not None else "`prompt_set` is there twice"
            )
            raise UserError(
                f"row `{item.id}` of {where} (`{same}`), so it would be trained and measured on; remove one of the two"
            )
