"""The nodes that start a training run in the background and look at one."""

from __future__ import annotations

import time

import comfy.model_management as management
import comfy.utils
import torch
from comfy_api.latest import io, ui

from ..trainers.config import BUILT_IN, RECIPES, make_config, preset_for
from ..trainers.errors import UserError
from ..trainers.prompts import PromptSet as Prompts
from ..trainers.runs.folder import RunFolder
from ..trainers.runs.inputs import resolve_prompts
from ..trainers.runs.pictures import curve, newest_clips
from ..trainers.runs.registry import is_alive, list_runs, refresh
from ..trainers.runs.starting import freeze_prompts, start_once
from ..trainers.runs.summary import sentence, summary
from . import folders
from .pictures import to_image
from .types import LazyPolicy, LazyReward, PromptSet, Reward, TrainingRun, WanPolicy

CATEGORY = "Identity-GRPO/training"
AUTO, CPU, ALL_GPUS = "auto", "CPU", "all GPUs"
NO_LORA = "none"
NOT, FIRST_LORA, END = "no", "for the first LoRA", "for the end"
HELD_OUT = 32
MOST = {"width": 4096, "height": 4096, "frames": 1025}
LOOKS_PER_SECOND = 2
NOT_LINKED = object()


class Train(io.ComfyNode):
    """Starts a run and returns at once; queued again with the same settings it shows that run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOTrain",
            display_name="Train (in the background)",
            category=CATEGORY,
            description="Teaches a model to keep people's identity, by Identity-GRPO, in a process of its own: neither Cancel nor "
            "closing the browser or ComfyUI ends it. Queued again with the same settings it shows the run that there is.",
            search_aliases=["grpo", "train lora", "reinforcement learning", "fine-tune", "identity", "rl"],
            inputs=[
                WanPolicy.Input(
                    "policy",
                    tooltip="The model to teach, from Load Model; its LoRA, if any, is not used (see start_lora).",
                ),
                Reward.Input("reward", tooltip="What judges the videos, from Load Reward."),
                PromptSet.Input(
                    "prompt_set", tooltip="What is trained on: at least 16 different rows, better a hundred."
                ),
                PromptSet.Input(
                    "evaluation_set",
                    optional=True,
                    tooltip="What progress is measured on; none of it may be in prompt_set. Without it the last tenth of prompt_set "
                    f"(at most {HELD_OUT} rows) is held out; TinyWorld brings its own.",
                ),
                io.Combo.Input(
                    "preset",
                    options=[AUTO, *RECIPES],
                    default=AUTO,
                    tooltip="The recipe, for the kind of model that is connected. paper: as published; fast: a short window of trained "
                    "steps, many times quicker; tiny: for TinyWorld. auto: tiny for TinyWorld's models, else fast.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="What the run is called, in its id and its LoRA's. Empty: the preset's name.",
                ),
                io.Int.Input(
                    "iterations",
                    default=0,
                    min=0,
                    max=100000,
                    tooltip="Rounds of drawing, judging and learning. 0: the preset's.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=1e-6,
                    round=1e-7,
                    tooltip="Size of a learning step. 0: the preset's.",
                ),
                io.Int.Input(
                    "groups_per_update",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Rows of the prompt set that one learning step looks at; below 16 the method hardly moves. 0: the preset's.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=MOST["width"],
                    step=16,
                    tooltip="Of the training videos in pixels. 0: the preset's.",
                ),
                io.Int.Input(
                    "height",
                    default=0,
                    min=0,
                    max=MOST["height"],
                    step=16,
                    tooltip="Of the training videos in pixels. 0: the preset's.",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=MOST["frames"],
                    tooltip="Of the training videos, 4n+1. 0: the preset's.",
                ),
                io.Int.Input(
                    "evaluate_every",
                    default=0,
                    min=0,
                    max=100000,
                    tooltip="Iterations between two measurements on held-out rows. 0: the preset's.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**31 - 1,
                    control_after_generate=False,
                    tooltip="Of everything that is random. Another seed is another run.",
                ),
                io.Combo.Input(
                    "devices",
                    options=device_choices(),
                    default=AUTO,
                    tooltip="Where it trains. auto: every GPU but ComfyUI's; the only GPU, after ComfyUI has left it, when there is one; "
                    "the CPU when there is none. One run at a time uses a device.",
                ),
                io.Combo.Input(
                    "start_lora",
                    options=[NO_LORA, *folders.lora_choices(of_newest_run=False)],
                    default=NO_LORA,
                    advanced=True,
                    tooltip="A LoRA to go on from, of the same rank; that of a run only when it has ended.",
                ),
            ],
            outputs=[TrainingRun.Output("training_run", tooltip="The run, for the Run node.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(
        cls, frames=None, width=None, height=None, preset=None, devices=None, start_lora=None
    ) -> bool | str:
        for name, value, options in (("preset", preset, [AUTO, *RECIPES]), ("devices", devices, device_choices())):
            if value is not None and value not in options:
                return f"{name} `{value}` is not offered here; choose one of {', '.join(options)}"
        if width is not None and height is not None and bool(width) != bool(height):
            return "give both width and height, or leave both at 0 for the preset's"
        sizes = {n: v for n, v in (("width", width), ("height", height), ("frames", frames)) if v}
        for name, value in sizes.items():
            if not 0 <= value <= MOST[name]:
                return f"{name} {value} is not possible; use at most {MOST[name]}, or 0 for the preset's"
        try:
            make_config("fast", {"video": sizes})
            _start(start_lora)
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **_) -> str:
        """Changes when a run is gone: the one of these settings is then started anew."""
        return repr([run.id for run in list_runs(folders.runs_root())])

    @classmethod
    def execute(
        cls,
        policy: LazyPolicy,
        reward: LazyReward,
        prompt_set: Prompts,
        preset: str,
        name: str,
        iterations: int,
        learning_rate: float,
        groups_per_update: int,
        width: int,
        height: int,
        frames: int,
        evaluate_every: int,
        seed: int,
        devices: str,
        start_lora: str,
        evaluation_set: Prompts | None = None,
    ) -> io.NodeOutput:
        gpus = chosen_gpus(devices)
        changes = {
            "seed": seed,
            "iterations": iterations,
            "start_lora": _start(start_lora),
            "publish": str(folders.published_root()),
            "policy": {**policy.config.model_dump(), "dtype": _dtype(policy.config.dtype, gpus)},
            "reward": {n: getattr(reward.config, n) for n in ("source", "base_model", "fps")}
            | {"dtype": _dtype(reward.config.dtype, gpus)},
            "video": {"width": width, "height": height, "frames": frames},
            "rollout": {"groups_per_update": groups_per_update},
            "optim": {"learning_rate": learning_rate},
            "evaluation": {"every": evaluate_every},
            **_prompts(prompt_set, evaluation_set),
        }
        config = make_config(_preset(preset, policy), _given(changes))
        resolve_prompts(config)
        if management.get_torch_device().type == "cuda" and management.get_torch_device().index in gpus:
            management.unload_all_models()
            management.soft_empty_cache()
        run, new = start_once(folders.runs_root(), config, name or config.preset, gpus)
        told = "started" if new else "these settings have a run already (change the seed or the name for another one)"
        return io.NodeOutput(run, ui=_shown(run, f"{told}\n{summary(run)}"))


class Run(io.ComfyNode):
    """A run as it stands: its LoRA, curve and clips."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPORun",
            display_name="Run (look at one)",
            category=CATEGORY,
            description="Shows a training run, current or old, and hands its newest or best LoRA on. Queue again to see how it goes on.",
            search_aliases=["training progress", "grpo", "curve", "checkpoint", "training run"],
            inputs=[
                io.Combo.Input(
                    "run", options=folders.run_choices(), tooltip="Which run; a connected training_run goes before it."
                ),
                TrainingRun.Input("training_run", optional=True, tooltip="The run that a Train node started or found."),
                io.Combo.Input(
                    "wait",
                    options=[NOT, FIRST_LORA, END],
                    default=NOT,
                    tooltip="Whether the graph waits here. Cancel ends the waiting, not the training.",
                ),
            ],
            outputs=[
                io.Combo.Output(
                    "latest", display_name="latest", tooltip="Its newest LoRA, for Load LoRA or Apply LoRA."
                ),
                io.Combo.Output("best", display_name="best", tooltip="The LoRA that was best on the held-out rows."),
                io.Image.Output("curve", tooltip="What was measured on the way."),
                io.Image.Output("clips", tooltip="The first held-out videos as last drawn, side by side."),
                io.String.Output("status", tooltip="How it stands, in words."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, run=None, training_run=NOT_LINKED) -> bool | str:
        # ComfyUI says None for what a link will bring; the widget's run may then be long gone.
        if training_run is NOT_LINKED and run is not None and run not in folders.run_choices():
            return f"there is no run `{run}`; choose `{folders.NEWEST_RUN}` or another one, after a refresh"
        return True

    @classmethod
    def fingerprint_inputs(cls, **_) -> str:
        """Changes with every run: which one a link brings is not known yet when this is asked."""
        return repr([_state(run) for run in list_runs(folders.runs_root())])

    @classmethod
    def execute(cls, run: str, wait: str, training_run: RunFolder | None = None) -> io.NodeOutput:
        chosen = training_run or folders.find_run(run)
        if wait != NOT:
            _wait(chosen, wait)
        text = summary(chosen)
        follow = (f"{chosen.id}: {which}" for which in (folders.LATEST, folders.BEST))
        pictures = to_image(curve(chosen)), to_image(newest_clips(chosen))
        return io.NodeOutput(*follow, *pictures, text, ui=_shown(chosen, text, pictures[0], cls))


def device_choices() -> list[str]:
    """`auto`, the GPUs that PyTorch sees, all of them, the CPU."""
    count = torch.cuda.device_count()
    return [AUTO, *(f"GPU {i}" for i in range(count)), *([ALL_GPUS] if count > 1 else []), CPU]


def chosen_gpus(choice: str) -> list[int]:
    """CUDA devices behind a choice; none: the CPU."""
    count = torch.cuda.device_count()
    if choice == CPU or not count:
        return []
    if choice == ALL_GPUS:
        return list(range(count))
    if choice != AUTO:
        return [int(choice.removeprefix("GPU "))]
    own = management.get_torch_device()
    return [i for i in range(count) if own.type != "cuda" or i != own.index] or [0]


def _preset(choice: str, policy: LazyPolicy) -> str:
    """Raises UserError for TinyWorld's recipe on another model: its videos are far too small for that one."""
    built_in = policy.config.source in BUILT_IN
    if choice == "tiny" and not built_in:
        raise UserError("preset `tiny` is TinyWorld's (videos of 80x48); choose `fast` or `paper` for this model")
    return preset_for(choice if choice != AUTO else "tiny" if built_in else "fast", policy.kind)


def _start(choice: str | None) -> str | None:
    """The file to go on from; None for none. Raises UserError for the LoRA of a run that goes on: a second queueing
    would find another one, and start a second run."""
    if choice in (None, NO_LORA):
        return None
    run = folders.followed(choice)
    if run is not None and is_alive(run):
        raise UserError(
            f"start_lora `{choice}` still changes; wait for the run's end, stop it, or choose one of its files (identity_grpo/…)"
        )
    return str(folders.find_lora(choice).path)


def _dtype(dtype: str, gpus: list[int]) -> str:
    """A CPU computes in float32 whatever ComfyUI's own device prefers."""
    return dtype if gpus else "float32"


def _prompts(train: Prompts, held_out: Prompts | None) -> dict:
    """The configuration's names of both sets. Raises UserError when TinyWorld's are swapped."""
    for name, given, wrong, right in (
        ("prompt_set", train, "held-out", "training"),
        ("evaluation_set", held_out, "train-", "held out"),
    ):
        if given is not None and given.source == "tinyworld" and given[0].id.startswith(f"tiny-{wrong}"):
            raise UserError(f"`{name}` is TinyWorld's other set; choose `TinyWorld: {right} (built in)`")
    root = folders.runs_root() / "prompt_sets"
    names = {"prompts": freeze_prompts(train, root)}
    if held_out is not None:
        return names | {"evaluation_prompts": freeze_prompts(held_out, root)}
    return names if train.source == "tinyworld" else names | {"held_out": max(1, min(HELD_OUT, len(train) // 10))}


def _given(changes: dict) -> dict:
    """Without the settings that were left to the preset: 0, except for the seed."""
    kept = {}
    for name, value in changes.items():
        value = _given(value) if isinstance(value, dict) else value
        if value or name == "seed":
            kept[name] = value
    return kept


def _state(run: RunFolder) -> tuple:
    return run.id, refresh(run).state, *run.changed()


def _wait(run: RunFolder, until: str) -> None:
    """Until its first LoRA or its end. Raises UserError when it ends badly before."""
    status = refresh(run)
    bar = comfy.utils.ProgressBar(status.iterations or 1)
    while is_alive(run):
        if until == FIRST_LORA and _has_lora(run):
            return
        bar.update_absolute(run.status().iteration)
        management.throw_exception_if_processing_interrupted()
        time.sleep(1 / LOOKS_PER_SECOND)
    status = refresh(run)
    if status.state == "failed" or not _has_lora(run):
        raise UserError(f"{sentence(run)}; {status.last_error or 'it has no LoRA'}")


def _has_lora(run: RunFolder) -> bool:
    """Whether it has one that has learned: that of iteration 0 is the untouched policy."""
    return any(export.iteration for export in run.exports())


def _shown(run: RunFolder, text: str, picture: torch.Tensor | None = None, node: type | None = None) -> dict:
    """What the editor shows on the node; `run` tells the node's buttons which run they act on."""
    shown = {"text": (text,), "identity_grpo_run": (run.id,)}
    return shown if picture is None else ui.PreviewImage(picture, cls=node).as_dict() | shown


NODES = [Train, Run]
