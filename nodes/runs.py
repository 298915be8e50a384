"""The nodes that start a training run in the background and show one."""

from __future__ import annotations

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..trainers.config import RECIPES, make_config
from ..trainers.prompts import PromptSet
from ..trainers.rewards.several import find_rewards
from ..trainers.runs.folder import RunFolder
from ..trainers.runs.inputs import resolve_prompts
from ..trainers.runs.pictures import curve, newest_clips
from ..trainers.runs.registry import list_runs, refresh
from ..trainers.runs.starting import start_once
from ..trainers.runs.summary import summary
from . import folders
from .deletions import Deletions
from .inputs import clean, require_choice, require_given
from .pictures import to_image
from .queue_again import NEVER, QUEUE_AGAIN, hold_back, next_time
from .run_settings import (
    AUTO,
    MOST_HELD_OUT,
    NO_LORA,
    ONE_FOR_REWARDS,
    PRESETS,
    REFUSE,
    WAIT,
    WHEN_BUSY,
    check_prompt_sets,
    chosen_launch,
    devices_input,
    free_memory,
    machines_input,
    model_settings,
    not_left_to_preset,
    preset_inputs,
    preset_of,
    preset_values,
    prompt_settings,
    seed_input,
    start_lora_file,
    video_settings,
    when_busy_input,
)
from .run_status import NO_WAIT, WAITS, base_model_warning, shown, wait_for_run
from .sampling import size_problem
from .types import LazyPolicy, LazyReward, PromptSetType, RewardType, TrainingRunType, WanPolicyType

CATEGORY = "Identity-GRPO/training"
NOT_LINKED = object()
_deletions = Deletions()


class Train(io.ComfyNode):
    """Starts a run and returns at once; queued again with the same settings it shows that run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOTrain",
            display_name="Train",
            category=CATEGORY,
            description="Trains a LoRA that keeps people's identity, by Identity-GRPO, in a process of its own: "
            "neither Cancel nor closing the browser or ComfyUI ends it. Queued again with the same settings it shows "
            "the same run.",
            search_aliases=[
                "grpo",
                "train lora",
                "lora train",
                "reinforcement learning",
                "fine-tune",
                "identity",
                "person",
                "face",
                "rl",
            ],
            inputs=[
                WanPolicyType.Input(
                    "policy",
                    tooltip="The model to train, from Load Model. A LoRA that acts on it, such as a distilled 4-step "
                    "one, is a frozen part of it and is not changed. To train one further use start_lora.",
                ),
                RewardType.Input("reward", tooltip="The reward that scores the videos, from Load Reward."),
                PromptSetType.Input(
                    "prompt_set",
                    tooltip="The training prompts: at least 16 rows for one update, better some hundreds.",
                ),
                PromptSetType.Input(
                    "evaluation_set",
                    optional=True,
                    tooltip="Held-out prompts to measure progress on, none of them in prompt_set. Without it the last "
                    f"tenth of prompt_set (at most {MOST_HELD_OUT} rows) is held out; TinyWorld has its own.",
                ),
                io.Combo.Input(
                    "preset",
                    options=[AUTO, *RECIPES],
                    default=AUTO,
                    extra_dict={PRESETS: preset_values()},
                    tooltip="The recipe. paper: as published; fast: a short window of trained steps, many times "
                    "quicker; tiny: for TinyWorld. auto: tiny for TinyWorld's models, fast for all others.",
                ),
                io.String.Input(
                    "name", default="", tooltip="Name of the run, in its id and its LoRA's; the preset's name if empty."
                ),
                *preset_inputs(),
                seed_input(0),
                devices_input(),
                io.Combo.Input(
                    "start_lora",
                    options=[NO_LORA, *folders.lora_choices(of_newest_run=False)],
                    default=NO_LORA,
                    optional=True,
                    advanced=True,
                    tooltip="A LoRA of the same rank to start from; that of a run only when the run has ended.",
                ),
                when_busy_input(),
                machines_input(),
            ],
            outputs=[TrainingRunType.Output("training_run", tooltip="The run, for Training Run.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, frames=None) -> bool | str:
        # Core repeats the answer for every input that is named here, so only one is: its widget allows wrong numbers.
        return size_problem(None, None, frames) or True

    @classmethod
    def fingerprint_inputs(cls, **_) -> str:
        """Changes when a run is deleted: queued again, these settings then start a new one."""
        return str(_deletions.count(folders.runs_root()))

    @classmethod
    def execute(
        cls,
        policy: LazyPolicy,
        reward: LazyReward,
        prompt_set: PromptSet,
        preset: str = AUTO,
        name: str = "",
        evaluation_set: PromptSet | None = None,
        iterations: int | None = None,
        learning_rate: float | None = None,
        groups_per_update: int | None = None,
        width: int | None = None,
        height: int | None = None,
        frames: int | None = None,
        evaluate_every: int | None = None,
        seed: int = 0,
        devices: str = AUTO,
        start_lora: str = NO_LORA,
        when_busy: str = REFUSE,
        machines: str = folders.THIS_MACHINE,
    ) -> io.NodeOutput:
        require_given("policy", policy, LazyPolicy, "Load Model")
        require_given("reward", reward, LazyReward, "Load Reward")
        require_given("prompt_set", prompt_set, PromptSet, "Load Prompt Set")
        require_choice("preset", preset, [AUTO, *RECIPES])
        require_choice("when_busy", when_busy, WHEN_BUSY)
        launch = chosen_launch(machines, devices)
        changes = not_left_to_preset(
            {
                "seed": seed,
                "iterations": iterations,
                "start_lora": start_lora_file(start_lora),
                "publish": str(folders.published_root()),
                "video": video_settings(width, height, frames),
                "rollout": {"groups_per_update": groups_per_update},
                "optim": {"learning_rate": learning_rate},
                "evaluation": {"every": evaluate_every},
                **model_settings(policy, reward, bool(launch.gpus), devices == ONE_FOR_REWARDS),
            }
        )
        changes |= reward.run_settings
        recipe = preset_of(preset, policy)
        check_prompt_sets(prompt_set, evaluation_set, make_config(recipe, changes).rollout.groups_per_update)
        config = make_config(recipe, changes | prompt_settings(prompt_set, evaluation_set))
        resolve_prompts(config)
        find_rewards(config)
        free_memory(launch.gpus)
        run, new = start_once(
            folders.runs_root(),
            config,
            clean(name) or config.preset,
            launch.gpus,
            when_busy == WAIT,
            launch.processes,
            launch.machines,
        )
        _deletions.see(run)
        outcome = (
            "started" if new else "these settings have a run already (for another one change the seed or the name)"
        )
        return io.NodeOutput(run, ui=shown(run, f"{outcome}\n{summary(run)}"))


class Run(io.ComfyNode):
    """The present state of a run: its LoRA, curve and clips."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPORun",
            display_name="Training Run",
            category=CATEGORY,
            description="Shows a training run, current or old, and outputs its newest or best LoRA. Queue again to "
            "update it.",
            search_aliases=["run", "training progress", "grpo", "lora train", "curve", "checkpoint", "training run"],
            inputs=[
                io.Combo.Input(
                    "run",
                    options=folders.run_choices(),
                    tooltip="The run to show; ignored when training_run is connected.",
                ),
                TrainingRunType.Input(
                    "training_run", optional=True, tooltip="The run that a Train node started or found."
                ),
                io.Combo.Input(
                    "wait",
                    options=WAITS,
                    default=NO_WAIT,
                    advanced=True,
                    tooltip="Whether the queue waits here, for scripts; in the editor use queue_again. Cancel ends the "
                    "waiting, not the training.",
                ),
                io.Combo.Input(
                    "queue_again",
                    options=QUEUE_AGAIN,
                    default=NEVER,
                    optional=True,
                    tooltip="When the editor queues the workflow again by itself. Until then latest and best are held "
                    "back: the nodes behind them do not run, and the queue is free.",
                ),
            ],
            outputs=[
                io.Combo.Output(
                    "latest", display_name="latest", tooltip="Its newest LoRA, for Load LoRA, Apply LoRA or Save LoRA."
                ),
                io.Combo.Output("best", display_name="best", tooltip="The LoRA of its best evaluation."),
                io.Image.Output("curve", tooltip="Reward and evaluations over the iterations."),
                io.Image.Output("clips", tooltip="The newest videos of the first held-out prompts, side by side."),
                io.String.Output("status", tooltip="Its state, last evaluation and error as text."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, run=None, training_run=NOT_LINKED) -> bool | str:
        # ComfyUI passes None for what a link will bring; the run of the widget may be long deleted then. Core repeats
        # the answer for every named input that is there: without the link that is `run` alone.
        if training_run is NOT_LINKED and run is not None and run not in folders.run_choices():
            return f"there is no run `{run}`; choose `{folders.NEWEST_RUN}` or another one, after a refresh"
        return True

    @classmethod
    def fingerprint_inputs(cls, **_) -> str:
        """Changes with every run: it is not known here which one a link will bring."""
        return repr([_state(run) for run in list_runs(folders.runs_root())])

    @classmethod
    def execute(
        cls, run: str, wait: str, training_run: RunFolder | None = None, queue_again: str = NEVER
    ) -> io.NodeOutput:
        require_choice("wait", wait, WAITS)
        require_choice("queue_again", queue_again, QUEUE_AGAIN)
        chosen = training_run or folders.find_run(run)
        if wait != NO_WAIT:
            wait_for_run(chosen, wait)
        warning = base_model_warning(chosen)
        text = summary(chosen) + (f"\nWarning: {warning}" if warning else "")
        follow = (f"{chosen.id}: {which}" for which in (folders.LATEST, folders.BEST))
        pictures = to_image(curve(chosen)), to_image(newest_clips(chosen))
        moment = next_time(chosen, queue_again)
        if hold_back(chosen, queue_again):
            text += f"\nThe nodes behind this one run {moment}; the queue is free until then."
            follow = (ExecutionBlocker(None) for _ in range(2))
        queued = {"queue_again": (moment,)} if moment else {}
        return io.NodeOutput(*follow, *pictures, text, ui=shown(chosen, text, warning) | queued)


def _state(run: RunFolder) -> tuple:
    try:
        return run.id, refresh(run).state, *run.changed()
    except OSError:
        return run.id, "deleted"


NODES = [Train, Run]
