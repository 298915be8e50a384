"""The node that trains a reward from votes, as a run in the background."""

from __future__ import annotations

import math
from pathlib import Path

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..trainers.config import RewardRunConfig
from ..trainers.errors import UserError
from ..trainers.preference.folder import PairFolder, PairRecords
from ..trainers.preference.loss import INVALID
from ..trainers.preference.recipe import RECIPES
from ..trainers.preference.stored import voted_pairs
from ..trainers.rewards.folder import find_checkpoint
from ..trainers.runs.registry import list_runs, refresh
from ..trainers.runs.starting import start_once
from ..trainers.runs.summary import summary
from . import folders
from .inputs import clean, require_choice, require_range
from .queue_again import END, NEVER, next_time
from .run_settings import (
    AUTO,
    REFUSE,
    WAIT,
    WHEN_BUSY,
    chosen_launch,
    devices_input,
    free_memory,
    machines_input,
    seed_input,
    when_busy_input,
)
from .run_status import shown
from .votes import pair_folder, pairs_root

CATEGORY = "Identity-GRPO/rewards"
PRESETS = [AUTO, *RECIPES]
QUEUE_AGAIN = [NEVER, END]
EPOCHS, HELD_OUT, LEAST_VOTES = (0.1, 100.0), (0.0, 0.9), (8, 100_000)


class TrainReward(io.ComfyNode):
    """Starts a run that trains a reward and returns at once; queued again with the same votes it shows that run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOTrainReward",
            display_name="Train Reward",
            category=CATEGORY,
            description="Trains a reward from the votes of Vote on Videos, in a process of its own: neither Cancel nor "
            "closing the browser or ComfyUI ends it. Queued again with the same votes and settings it shows the same "
            "run.",
            search_aliases=["reward training", "preference", "bradley-terry", "votes", "human feedback", "rlhf"],
            inputs=[
                io.String.Input(
                    "pairs",
                    default="votes",
                    tooltip="The folder of pairs and votes: its name in Vote on Videos, or the output of that node.",
                ),
                io.Combo.Input(
                    "base_model",
                    options=folders.training_base_choices(),
                    tooltip=f"The Qwen2.5-VL to train, a folder in models/{folders.REWARDS}; the built-in one is for "
                    "TinyWorld's videos.",
                ),
                io.Combo.Input(
                    "start_reward",
                    options=[folders.NO_REWARD, *folders.reward_choices()],
                    default=folders.NO_REWARD,
                    tooltip="A reward of this base model to begin with, such as the released one.",
                ),
                io.Combo.Input(
                    "preset",
                    options=PRESETS,
                    default=AUTO,
                    tooltip="The recipe. paper: as the released reward was trained; tiny: for TinyWorld. auto: tiny "
                    "for TinyWorld's base model, paper for all others.",
                ),
                io.String.Input("name", default="reward", tooltip="Name of the run, in its id."),
                io.Float.Input(
                    "epochs",
                    default=3.0,
                    min=EPOCHS[0],
                    max=EPOCHS[1],
                    step=0.5,
                    tooltip="How often each pair is trained on.",
                ),
                io.Int.Input(
                    "least_votes",
                    default=50,
                    min=LEAST_VOTES[0],
                    max=LEAST_VOTES[1],
                    tooltip="The training starts when so many pairs have a verdict; until then the node shows how many "
                    "there are.",
                ),
                io.Float.Input(
                    "held_out",
                    default=0.15,
                    min=HELD_OUT[0],
                    max=HELD_OUT[1],
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="Share of the pairs, by people, that are not trained on: the reward is measured on them, "
                    "and the best one is kept. 0 where all pairs show the same people.",
                ),
                io.Boolean.Input(
                    "low_memory",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="For 24 GB: the vision tower by LoRA, one pair at a time, activations computed again.",
                ),
                seed_input(42, advanced=True),
                devices_input(),
                when_busy_input(),
                io.Combo.Input(
                    "queue_again",
                    options=QUEUE_AGAIN,
                    default=NEVER,
                    optional=True,
                    tooltip="When the editor queues the workflow again by itself. Until the run has ended, checkpoint "
                    "is held back: the nodes behind it do not run, and the queue is free.",
                ),
                machines_input(),
            ],
            outputs=[
                io.Combo.Output(
                    "checkpoint", display_name="checkpoint", tooltip="The reward, for Load Reward, once it is trained."
                ),
                io.String.Output("status", tooltip="The run's state, accuracy and error as text."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, pairs=None, **_) -> str:
        """Changes with every vote, and with the state of every run that trains a reward."""
        runs = [run for run in list_runs(folders.runs_root()) if run.kind == "reward"]
        try:
            votes = _folder(str(pairs)).voted_size()
        except (UserError, OSError):
            votes = 0
        return repr((votes, [(run.id, refresh(run).state) for run in runs]))

    @classmethod
    def execute(
        cls,
        pairs: str,
        base_model: str,
        start_reward: str,
        preset: str,
        name: str,
        epochs: float,
        least_votes: int,
        held_out: float = 0.15,
        low_memory: bool = False,
        seed: int = 42,
        devices: str = AUTO,
        when_busy: str = REFUSE,
        queue_again: str = NEVER,
        machines: str = folders.THIS_MACHINE,
    ) -> io.NodeOutput:
        for given, value, options in (
            ("base_model", base_model, folders.training_base_choices()),
            ("preset", preset, PRESETS),
            ("when_busy", when_busy, WHEN_BUSY),
            ("queue_again", queue_again, QUEUE_AGAIN),
        ):
            require_choice(given, value, options)
        for given, value, limits in (
            ("epochs", epochs, EPOCHS),
            ("held_out", held_out, HELD_OUT),
            ("least_votes", least_votes, LEAST_VOTES),
        ):
            require_range(given, value, limits)
        launch, folder = chosen_launch(machines, devices), _folder(pairs)
        records = folder.read() if folder.exists() else PairRecords()
        count = sum(records.label(pair) != INVALID for pair in records.pairs)
        if count < least_votes:
            text = f"{folder.path.name}: {count} of {least_votes} pairs have votes. Vote, then queue again."
            return io.NodeOutput(ExecutionBlocker(None), text, ui={"text": (text,)})
        config = _config(folder, base_model, start_reward, preset, epochs, held_out, low_memory, seed)
        free_memory(launch.gpus)
        run, new = start_once(
            folders.runs_root(),
            config,
            clean(name) or "reward",
            launch.gpus,
            when_busy == WAIT,
            launch.processes,
            launch.machines,
        )
        text = ("started\n" if new else "") + summary(run)
        moment = next_time(run, queue_again)
        checkpoint = folders.reward_choice(run) if run.has_reward() else ExecutionBlocker(None)
        queued = {"queue_again": (moment,)} if moment else {}
        return io.NodeOutput(checkpoint, text, ui=shown(run, text) | queued)


def _folder(pairs: str) -> PairFolder:
    """The folder behind the widget: a name, or the path that Vote on Videos gives. Raises UserError."""
    path = Path(pairs)
    return pair_folder(path.name if path.parent == pairs_root() else pairs)


def _config(
    folder: PairFolder,
    base_model: str,
    start_reward: str,
    preset: str,
    epochs: float,
    held_out: float,
    low_memory: bool,
    seed: int,
) -> RewardRunConfig:
    """Raises UserError for votes and files that cannot be trained on."""
    size, start = folder.voted_size(), folders.start_reward_folder(start_reward)
    if start is not None:
        find_checkpoint(start)
    small = base_model == folders.BUILT_IN
    recipe = ("tiny" if small else "paper") if preset == AUTO else preset
    pairs = voted_pairs(folder, size, held_out)
    return RewardRunConfig(
        preset=recipe,
        seed=seed,
        iterations=max(1, math.ceil(epochs * len(pairs.train) / RECIPES[recipe]["batch_size"])),
        pairs=str(folder.path),
        pairs_bytes=size,
        base_model=str(folders.training_base(base_model)),
        start=None if start is None else str(start),
        held_out=float(held_out),
        learning_rate=RECIPES[recipe]["learning_rate"],
        low_memory=low_memory,
    )


NODES = [TrainReward]
