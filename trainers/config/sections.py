"""Every setting of a training run: its type, limits, default and meaning.

`python -m trainers settings` prints what is written here. Defaults are those of the published recipe (arXiv 2510.14256
and its released `config/dgx.py`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

from ..errors import UserError, is_utf8
from .loras import split_strength
from .plain_yaml import dump_yaml

PolicyKind = Literal["vace", "phantom"]
BUILT_IN: dict[str, PolicyKind] = {"tinyworld": "vace", "tinyworld-phantom": "phantom"}
"""Names of the models that come with the code, and what they are."""
TINYWORLD_WEIGHTS = Path(__file__).parents[1] / "tinyworld" / "weights"
BUILT_IN_LORAS = {"tinyworld-4-steps": TINYWORLD_WEIGHTS / "vace" / "4_steps.safetensors"}
"""Names of the LoRAs that come with the code, and their files."""
MOST_FROZEN = 16
MOST_VIDEOS = 65_536  # of one iteration


# Numbers that must not be 0 have a least value that still works in float32: 1e-320 is 0 there.
# Strict: pydantic would read `true` as 1.
Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Place = Annotated[str, Field(pattern=r"^[^\x00]+$", max_length=4096)]
"""A file, a folder or the name of something built in."""
Seed = Annotated[Integer, Field(ge=0, le=2**64 - 1)]
Steps = Annotated[Integer, Field(ge=2, le=1000)]
Scale = Annotated[Number, Field(ge=1, le=100)]
Interval = Annotated[Integer, Field(ge=1, le=1_000_000)]
MicroBatch = Annotated[Integer, Field(ge=1, le=1024)]
Decay = Annotated[Number, Field(ge=0, lt=1)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Tracker = Literal["tensorboard", "wandb"]


class Section(BaseModel):
    """A group of settings: unknown names and infinite numbers are refused, values are frozen once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PolicyConfig(Section):
    """The video model being trained."""

    source: Place = Field(
        "tinyworld",
        description="VACE or Phantom: a diffusers folder, a transformer's file (.safetensors, .gguf, .pth), or a "
        "built-in model (tinyworld, tinyworld-phantom)",
    )
    vace_module: Place | None = Field(
        None, description="file of VACE's control blocks alone, if `source` is the text-to-video model they belong to"
    )
    text_encoder: Place | None = Field(
        None, description="folder or file of the text encoder; null: in the model's folder"
    )
    vae: Place | None = Field(None, description="folder or file of the VAE; null: in the model's folder")
    loras: list[Place] = Field(
        [],
        max_length=MOST_FROZEN,
        description="frozen LoRAs that are part of the policy, each FILE or FILE:STRENGTH, such as a distilled 4-step "
        "LoRA: the run trains, evaluates and compares under them, and its exports do not contain them",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of transformer and text encoder; LoRA and VAE stay float32"
    )
    weights: Literal["converted", "stored"] = Field(
        "converted",
        description="of the transformer: converted to `dtype`; stored: 8-bit weights of its file (FP8, int8) stay as "
        "they are, and each layer converts its own as it computes: half the memory, the same numbers",
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto",
        description="compile the transformer's blocks: a minute or two once, then up to twice as fast; auto: where it "
        "pays",
    )
    fp8: bool = Field(
        False,
        description="multiply in FP8 wherever neither a gradient nor a probability depends on it (steps outside the "
        "window, evaluation, the KL's base policy); NVIDIA Ada, Hopper or newer, dtype bfloat16",
    )

    @property
    def frozen_loras(self) -> list[tuple[Path, float]]:
        """File and strength of every LoRA in `loras`."""
        named = [split_strength(text) for text in self.loras]
        return [(BUILT_IN_LORAS.get(file, Path(file)), strength) for file, strength in named]

    @model_validator(mode="after")
    def _stored_weights_stay(self) -> PolicyConfig:
        if self.weights == "stored" and self.loras:
            raise ValueError(
                "weights `stored` cannot be used with loras, which become part of converted ones; set policy.weights "
                "to `converted`, in ComfyUI by `weights` of Load Model"
            )
        return self

    @model_validator(mode="after")
    def _strengths_are_numbers(self) -> PolicyConfig:
        for text in self.loras:
            try:
                split_strength(text)
            except ValueError as error:
                raise ValueError(f"loras: {error}") from error
        return self


class RewardConfig(Section):
    """The identity reward: the model that scores identity. What else is trained on is in `rewards`."""

    source: Place = Field("tinyworld", description="folder of a reward checkpoint, or tinyworld for the built-in one")
    base_model: Place | None = Field(
        None, description="folder or file of the Qwen2.5-VL it was trained on; null: as the checkpoint names it"
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the reward model; its head stays float32")
    device: Literal["same", "own"] = Field(
        "same",
        description="same: the rewards share the policy's GPU, in turn with it; own: they have the last of the run's "
        "GPUs to themselves, and score videos while the next are sampled. Both give the same run",
    )
    fps: Number = Field(
        10.0, ge=0.01, le=1000, description="frames per second of the sampled videos; the rate is part of the score"
    )
    micro_batch: MicroBatch = Field(16, description="videos scored at once on one device")
    shuffle: bool = Field(False, description="control experiment: rewards are shuffled within each group")


Weight = Annotated[Number, Field(ge=0, le=1000)]
OFF = "; 0: not computed"


class IdentityWeight(Section):
    """The part of the identity reward, which `reward` names."""

    weight: Weight = Field(
        1.0, description="weight of the identity reward; it has no effect where no other reward has one; 0: only shown"
    )


class FacesRewardConfig(Section):
    """The face report as a reward. Another embedder must judge then."""

    weight: Weight = Field(0.0, description=f"weight of the score of the face report{OFF}")
    embedder: Place | None = Field(
        None, description="ONNX file of the face embedder that is trained on; null: the built-in one"
    )


class MotionRewardConfig(Section):
    """Guard rail against videos that stand still: how much of the base policy's motion is left."""

    weight: Weight = Field(
        0.0,
        description="weight of the motion that is left of the base policy's with the same item; each item costs one "
        f"more video when it is sampled first{OFF}",
    )
    enough: Number = Field(
        0.8, ge=0.01, le=10, description="part of the base policy's motion above which more is worth no more"
    )


class CopyRewardConfig(Section):
    """Guard rail against pasting the reference images."""

    weight: Weight = Field(
        0.0, description=f"weight of the share of frames that copy no reference image, by the face report{OFF}"
    )


class AlignmentRewardConfig(Section):
    """Guard rail against videos that leave their prompt."""

    weight: Weight = Field(0.0, description=f"weight of the similarity of frames and prompt by a CLIP model{OFF}")
    source: Place | None = Field(None, description="folder of the CLIP model, as transformers writes it")
    frames: Integer = Field(4, ge=1, le=64, description="frames of each video that it reads")


class RewardsConfig(Section):
    """The rewards: the identity reward, and others beside it.

    Each is normalised in its group, multiplied by its weight and added (GDPO).
    """

    identity: IdentityWeight = IdentityWeight()
    faces: FacesRewardConfig = FacesRewardConfig()
    motion: MotionRewardConfig = MotionRewardConfig()
    copy_paste: CopyRewardConfig = CopyRewardConfig()
    alignment: AlignmentRewardConfig = AlignmentRewardConfig()

    @property
    def weights(self) -> dict[str, float]:
        """The weight of every reward by its name, in the order in which they are reported."""
        return {name: getattr(self, name).weight for name in type(self).model_fields}

    @model_validator(mode="after")
    def _can_be_computed(self) -> RewardsConfig:
        if not any(self.weights.values()):
            raise ValueError("identity.weight 0 leaves nothing to train on; give one of the rewards a weight above 0")
        if self.alignment.weight and self.alignment.source is None:
            raise ValueError("alignment.source is missing; give the folder of a CLIP model, or weight 0")
        return self


class FacesConfig(Section):
    """The face report that judges held-out videos; its networks are built in, or files of yours."""

    detector: Place | None = Field(
        None,
        description="ONNX file of a face detector with the interface of InsightFace's SCRFD; null: the built-in one",
    )
    embedder: Place | None = Field(
        None, description="ONNX file of a face embedder with the interface of ArcFace; null: the built-in one"
    )


class VideoConfig(Section):
    """Size of the videos."""

    height: Integer = Field(240, ge=16, le=4096, description="pixels, a multiple of 16")
    width: Integer = Field(416, ge=16, le=4096, description="pixels, a multiple of 16")
    frames: Integer = Field(33, ge=1, le=1025, description="frames, 4n+1")

    @model_validator(mode="after")
    def _fits_the_vae(self) -> VideoConfig:
        for name in ("height", "width"):
            value = getattr(self, name)
            if value % 16:
                raise ValueError(
                    f"{name} {value} is not a multiple of 16; use {value // 16 * 16} or {value // 16 * 16 + 16}"
                )
        if self.frames % 4 != 1:
            raise ValueError(
                f"frames {self.frames} must be 4n+1 (Wan's VAE); use {max(1, (self.frames - 1) // 4 * 4 + 1)}"
            )
        return self


class WindowConfig(Section):
    """Which denoising steps add noise and are trained (SDE steps); the others are ODE steps."""

    kind: Literal["all", "random", "sliding", "scattered"] = Field(
        "all",
        description=(
            "all: the first `size` steps; random: neighbours at a random place; sliding: neighbours that move slowly; "
            "scattered: steps that need not be neighbours"
        ),
    )
    per: Literal["iteration", "group"] = Field(
        "iteration", description="random and scattered: whether all groups of an iteration share a window"
    )
    size: Integer = Field(24, ge=1, le=1000, description="steps in the window")
    last: Integer | None = Field(
        None, ge=1, le=1000, description="the window ends at this step or before; null: half of the steps"
    )
    slide_every: Interval = Field(25, description="iterations between two moves of a sliding window")


class RolloutConfig(Section):
    """How videos are sampled for training."""

    steps: Steps = Field(25, description="denoising steps of a rollout")
    shift: Number = Field(
        3.0,
        ge=0.01,
        le=100,
        description="flow shift of the noise schedule, in training and evaluation; above 1: more noisy steps",
    )
    guidance: Scale = Field(
        4.5, description="scale of the text (CFG); 1 samples and trains without the unconditional branch"
    )
    image_guidance: Scale | None = Field(
        None, description="Phantom's scale of the reference images; null: that of the text. VACE has none"
    )
    group_size: Integer = Field(8, ge=2, le=1024, description="rollouts of one prompt item (G)")
    groups_per_update: Integer = Field(
        16, ge=1, le=4096, description="groups, each of another item, in one optimiser step; below 16 it hardly learns"
    )
    updates_per_iteration: Integer = Field(
        2, ge=1, le=64, description="optimiser steps per iteration, each on groups of its own"
    )
    window: WindowConfig = WindowConfig()
    dynamics: Literal["flow_sde", "cps"] = Field(
        "flow_sde", description="the stochastic step: Flow-GRPO's SDE, or coefficients-preserving sampling (CPS)"
    )
    micro_batch: MicroBatch = Field(4, description="videos sampled at once on one device")

    @property
    def groups(self) -> int:
        """Groups of one iteration."""
        return self.groups_per_update * self.updates_per_iteration

    @model_validator(mode="after")
    def _window_fits(self) -> RolloutConfig:
        window = self.window
        if window.size > self.steps:
            raise ValueError(f"window.size {window.size} is more than the {self.steps} steps; lower it or raise steps")
        if window.kind != "all":
            last = window.last or self.steps // 2
            if last > self.steps:
                raise ValueError(f"window.last {last} is beyond the {self.steps} steps; use at most {self.steps}")
            if window.size > last:
                raise ValueError(
                    f"window.size {window.size} does not fit before step {last}; lower size or raise window.last"
                )
        if self.dynamics == "cps" and (window.size if window.kind == "all" else last) == self.steps:
            raise ValueError(
                f"dynamics `cps` adds no noise in the last step, so it cannot be trained: lower window."
                f"{'size' if window.kind == 'all' else 'last'} to {self.steps - 1}, or use `flow_sde`"
            )
        return self

    @model_validator(mode="after")
    def _videos_fit(self) -> RolloutConfig:
        videos = self.groups * self.group_size
        if videos > MOST_VIDEOS:
            raise ValueError(
                f"group_size x groups_per_update x updates_per_iteration are {videos} videos per iteration; "
                f"use at most {MOST_VIDEOS}"
            )
        return self


class OptimConfig(Section):
    """The update (AdamW)."""

    learning_rate: Number = Field(1e-4, ge=1e-10, le=1, description="learning rate")
    schedule: Literal["constant", "linear"] = Field(
        "constant", description="of the learning rate: linear falls to 0 at the last iteration"
    )
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="decay of AdamW's two averages")
    epsilon: Number = Field(1e-8, ge=1e-20, le=1, description="AdamW's term for numerical stability")
    weight_decay: Number = Field(1e-4, ge=0, le=1, description="AdamW's weight decay")
    max_grad_norm: Number = Field(1.0, ge=1e-6, le=1e6, description="gradients are clipped to this norm")
    clip_range: Number = Field(1e-3, ge=1e-7, le=1, description="the probability ratio is clipped to 1 ± this")
    advantage_clip: Number = Field(5.0, ge=1e-3, le=1000, description="advantages are clipped to ± this")
    kl: Number = Field(
        0.004, ge=0, le=1000, description="weight of the KL to the base policy; 0 saves its forward pass"
    )
    ratio: Literal["plain", "guard"] = Field(
        "plain", description="guard: GRPO-Guard's normalised log-ratio and gradient"
    )
    global_std: bool = Field(
        False, description="divide advantages by the standard deviation over all groups, not over their own"
    )
    micro_batch: MicroBatch = Field(4, description="videos in one backward pass on one device")
    gradient_checkpointing: Literal["auto"] | Fraction = Field(
        "auto",
        description="share of the blocks, 0 to 1, that are recomputed in the backward pass: slower, with a tenth of "
        "their memory; auto: on a GPU as many as its memory asks for, elsewhere none",
    )


class LoraConfig(Section):
    """The LoRA on the attention projections."""

    rank: Integer = Field(32, ge=1, le=1024, description="rank of every module's two factors")
    alpha: Number = Field(32.0, ge=1e-3, le=65_536, description="the LoRA acts with strength alpha / rank")


class EmaConfig(Section):
    """Average of the LoRA that is evaluated and exported."""

    decay: Decay = Field(
        0.9, description="decay of the average once warmed up: min((1 + n) / (10 + n), decay) at average n"
    )
    every: Interval = Field(8, description="optimiser steps between two averages")


class EvaluationConfig(Section):
    """Held-out measurement: fixed items and noise, ODE, averaged weights, against the base policy."""

    every: Interval = Field(10, description="iterations between two evaluations; 0 and the last are always measured")
    items: Integer = Field(32, ge=1, le=10_000, description="held-out items measured (at most as many as the set has)")
    steps: Steps = Field(50, description="denoising steps")
    guidance: Scale | None = Field(None, description="scale of the text; null: the training's")
    image_guidance: Scale | None = Field(
        None, description="Phantom's scale of the reference images; null: the training's"
    )
    seed: Seed = Field(1234, description="of the noise, the same in every evaluation")
    video: VideoConfig | None = Field(None, description="size of the videos; null: the training size")


class CheckpointConfig(Section):
    """What a run saves on the way."""

    every: Interval = Field(1, description="iterations between two checkpoints: what a crash can lose")
    keep: Integer = Field(
        3, ge=1, le=10_000, description="newest checkpoints kept; the best evaluated one is kept as well"
    )


class MemoryConfig(Section):
    """What of a run's models is on the GPU at the same time. All plans give the same run."""

    plan: Literal["auto", "resident", "phases", "sharded", "block_swap"] = Field(
        "auto",
        description="resident: transformer, VAE and reward stay on the GPU; phases: each is there only while it works; "
        "sharded: as phases, and the transformer's blocks are split over the run's processes, which gather a block "
        "while it computes (FSDP2); "
        "block_swap: as phases, and of the transformer only two blocks (this sets optim.gradient_checkpointing); "
        "auto: the first of these that fits",
    )
    limit: Number | None = Field(
        None,
        ge=0.1,
        le=1024,
        description="GiB of GPU memory that each process may use; null: what is free at its start",
    )


class ParallelConfig(Section):
    """How several processes share the work."""

    context: Integer = Field(
        1,
        ge=1,
        le=64,
        description="processes that compute each video together, with its tokens split over them, for videos whose "
        "activations do not fit on one GPU; must divide the number of processes",
    )


class TrainConfig(Section):
    """Everything that decides a run. The same config and seed give the same run."""

    preset: str = Field("paper", description="the preset that the settings started from; chosen by --preset")
    seed: Seed = Field(0, description="of the LoRA, the order of the items and the noise")
    iterations: Interval = Field(120, description="training iterations: rollouts, rewards, then updates")
    prompts: Place = Field("tinyworld", description="CSV file of training items, or tinyworld")
    evaluation_prompts: Place | None = Field(
        None, description="CSV file of held-out items; null: the last `held_out` rows of prompts, or TinyWorld's own"
    )
    held_out: Integer = Field(0, ge=0, le=1_000_000, description="rows taken off the end of prompts for evaluation")
    publish: Place | None = Field(
        None,
        description="folder where every exported LoRA is put as well, in a folder named after the run, e.g. ComfyUI's "
        "models/loras",
    )
    negative_prompt: str = Field(
        "", max_length=10_000, description="of prompt items that have none of their own; used with guidance above 1"
    )
    start_lora: Place | None = Field(
        None, description="LoRA to start from; the KL and the evaluation compare with the base policy, without it"
    )
    trackers: list[Tracker] = Field(
        [], description="accelerate's trackers that get the metrics too; their packages must be installed"
    )
    process_timeout_minutes: Number = Field(
        120.0, ge=1, le=10_080, description="minutes that the processes of a run wait for each other before it fails"
    )
    policy: PolicyConfig = PolicyConfig()
    reward: RewardConfig = RewardConfig()
    rewards: RewardsConfig = RewardsConfig()
    faces: FacesConfig = FacesConfig()
    video: VideoConfig = VideoConfig()
    rollout: RolloutConfig = RolloutConfig()
    optim: OptimConfig = OptimConfig()
    lora: LoraConfig = LoraConfig()
    ema: EmaConfig = EmaConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    memory: MemoryConfig = MemoryConfig()
    parallel: ParallelConfig = ParallelConfig()

    @model_validator(mode="after")
    def _ratio_fits_dynamics(self) -> TrainConfig:
        if self.optim.ratio == "guard" and self.rollout.dynamics != "flow_sde":
            raise ValueError(
                "optim.ratio `guard` is defined for rollout.dynamics `flow_sde` only; choose one of the two"
            )
        return self

    @model_validator(mode="after")
    def _faces_can_be_found(self) -> TrainConfig:
        for name in ("faces", "copy_paste"):
            if self.rewards.weights[name] and "tinyworld" in (self.prompts, self.evaluation_prompts):
                raise ValueError(
                    f"rewards.{name} looks for faces, and TinyWorld has drawn people, which the face networks do not "
                    "find; set its weight to 0, or train on prompts with photographs"
                )
        return self

    @model_validator(mode="after")
    def _another_embedder_judges(self) -> TrainConfig:
        if self.rewards.faces.weight and self.rewards.faces.embedder == self.faces.embedder:
            raise ValueError(
                f"rewards.faces trains on the face embedder that judges ({self.faces.embedder or 'the built-in one'}), "
                "so nothing would show whether it is hacked; set faces.embedder or rewards.faces.embedder to another "
                "one, e.g. an ONNX file in ComfyUI's models/insightface"
            )
        return self

    def with_absolute_paths(self) -> TrainConfig:
        """The same run started from any folder: paths are made absolute, `~` is expanded, built-in names stay.

        Raises UserError for a path that is not UTF-8: the run's config.yaml cannot hold it.
        """

        def absolute(value: str | None) -> str | None:
            if value in (None, *BUILT_IN):
                return value
            path = str(Path(os.path.expanduser(value)).absolute())
            if not is_utf8(path):
                raise UserError(f"the path {path} is not UTF-8; rename its folder")
            return path

        own = {
            name: absolute(getattr(self, name)) for name in ("prompts", "evaluation_prompts", "start_lora", "publish")
        }
        policy = {
            name: absolute(getattr(self.policy, name)) for name in ("source", "vace_module", "text_encoder", "vae")
        }
        named = [split_strength(text) for text in self.policy.loras]
        policy["loras"] = [
            f"{file if file in BUILT_IN_LORAS else absolute(file)}:{strength:g}" for file, strength in named
        ]
        reward = {name: absolute(getattr(self.reward, name)) for name in ("source", "base_model")}
        rewards, faces = self.rewards, self.faces
        rewards = rewards.model_copy(
            update={
                "faces": rewards.faces.model_copy(update={"embedder": absolute(rewards.faces.embedder)}),
                "alignment": rewards.alignment.model_copy(update={"source": absolute(rewards.alignment.source)}),
            }
        )
        files = {name: absolute(getattr(faces, name)) for name in ("detector", "embedder")}
        return self.model_copy(
            update=own
            | {
                "policy": self.policy.model_copy(update=policy),
                "reward": self.reward.model_copy(update=reward),
                "rewards": rewards,
                "faces": faces.model_copy(update=files),
            }
        )

    @property
    def rewards_have_a_device(self) -> bool:
        """Whether the rewards take a device beside those of the policy."""
        return self.reward.device == "own"

    def to_yaml(self) -> str:
        return dump_yaml(self.model_dump(mode="json"))
