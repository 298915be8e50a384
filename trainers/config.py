"""One validated configuration for a training run, and its presets.

Numbers of `paper` are those of the published recipe (arXiv 2510.14256 and its released `config/dgx.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import UserError

PolicyKind = Literal["vace", "phantom"]
BUILT_IN: dict[str, PolicyKind] = {"tinyworld": "vace", "tinyworld-phantom": "phantom"}
"""Names of the models that come with the code, and what they are."""
TINYWORLD_WEIGHTS = Path(__file__).parent / "tinyworld" / "weights"


class Section(BaseModel):
    """A group of settings: unknown names are refused, values are frozen once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PolicyConfig(Section):
    """The video model being trained."""

    source: str = Field(
        "tinyworld",
        description="a diffusers folder, a transformer's .safetensors file, or `tinyworld` or "
        "`tinyworld-phantom` for a built-in model",
    )
    text_encoder: str | None = Field(None, description="folder or .safetensors file, if it does not lie with the model")
    vae: str | None = Field(None, description="folder or .safetensors file, if it does not lie with the model")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of the frozen base; the LoRA stays float32")


class RewardConfig(Section):
    """The model that scores identity."""

    source: str = Field("tinyworld", description="a reward checkpoint folder, or `tinyworld` for the built-in model")
    base_model: str | None = Field(None, description="the Qwen2.5-VL folder, if the checkpoint does not name it")
    dtype: Literal["float32", "bfloat16"] = "float32"
    fps: float = Field(10.0, gt=0, description="frame rate told to the reward: it is part of the score")
    micro_batch: int = Field(16, ge=1, description="videos scored at once")
    shuffle: bool = Field(False, description="control experiment: deal a group's rewards out at random")


class VideoConfig(Section):
    """Size of the videos."""

    height: int = Field(240, ge=16)
    width: int = Field(416, ge=16)
    frames: int = Field(33, ge=1)

    @model_validator(mode="after")
    def _sizes(self) -> VideoConfig:
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
    """Which denoising steps add noise and are trained; the others are ODE steps."""

    kind: Literal["all", "random", "sliding"] = "all"
    size: int = Field(24, ge=1, description="number of trained SDE steps")
    last: int | None = Field(None, ge=1, description="the window lies before this step; None: half the steps")
    slide_every: int = Field(25, ge=1, description="iterations between two moves of a sliding window")


class RolloutConfig(Section):
    """How videos are sampled for training."""

    steps: int = Field(25, ge=2)
    shift: float = Field(3.0, gt=0, description="flow shift of the noise schedule")
    guidance: float = Field(
        4.5, ge=1, description="scale of the text; 1 samples and trains without the unconditional branch"
    )
    image_guidance: float | None = Field(
        None, ge=1, description="Phantom's scale of the references (None: that of the text); VACE has none"
    )
    group_size: int = Field(8, ge=2, description="rollouts of one prompt item (G)")
    groups_per_update: int = Field(16, ge=1, description="below 16 the method hardly moves")
    updates_per_iteration: int = Field(2, ge=1, description="optimiser steps taken from one iteration's rollouts")
    window: WindowConfig = WindowConfig()
    dynamics: Literal["flow_sde", "cps"] = "flow_sde"
    micro_batch: int = Field(4, ge=1, description="videos sampled at once on one device")

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
                f"dynamics `cps` adds no noise in the last step, so it cannot be trained: keep the window within the first "
                f"{self.steps - 1} steps (window.{'size' if window.kind == 'all' else 'last'}), or use `flow_sde`"
            )
        return self


class OptimConfig(Section):
    """The update."""

    learning_rate: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(1e-4, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    clip_range: float = Field(1e-3, gt=0, description="the ratio is clipped to 1 +- this")
    advantage_clip: float = Field(5.0, gt=0)
    kl: float = Field(0.004, ge=0, description="weight of the KL to the reference policy; 0 saves its forward pass")
    ratio: Literal["plain", "guard"] = Field(
        "plain", description="`guard`: GRPO-Guard's normalised log-ratio and gradient"
    )
    global_std: bool = Field(False, description="advantages over the spread of all groups instead of their own")
    micro_batch: int = Field(4, ge=1, description="videos in one backward pass on one device")
    gradient_checkpointing: bool = Field(
        False, description="compute the forward pass twice and keep a tenth of it in memory"
    )


Tracker = Literal["tensorboard", "wandb"]


class LoraConfig(Section):
    rank: int = Field(32, ge=1)
    alpha: float = Field(32.0, gt=0)


class EmaConfig(Section):
    """Average of the LoRA that is evaluated and exported."""

    decay: float = Field(0.9, ge=0, lt=1)
    every: int = Field(8, ge=1, description="optimiser steps between two averages")


class EvaluationConfig(Section):
    """Held-out measurement: fixed items and noise, ODE, EMA weights, against the untouched policy."""

    every: int = Field(10, ge=1, description="iterations between two evaluations; 0 and the last are always measured")
    items: int = Field(32, ge=1, description="held-out items measured (at most as many as the set has)")
    steps: int = Field(50, ge=2)
    guidance: float | None = Field(None, ge=1, description="None: the training's")
    image_guidance: float | None = Field(None, ge=1, description="None: the training's")
    seed: int = 1234
    video: VideoConfig | None = Field(None, description="None: the training size")


class CheckpointConfig(Section):
    every: int = Field(1, ge=1, description="iterations between two checkpoints: what a crash can lose")
    keep: int = Field(3, ge=1, description="newest checkpoints kept; the best evaluated one is kept as well")


class TrainConfig(Section):
    """Everything that decides a run. The same config and seed give the same run."""

    preset: str = "paper"
    seed: int = Field(0, ge=0)
    iterations: int = Field(120, ge=1)
    prompts: str = Field("tinyworld", description="CSV file of training items, or `tinyworld`")
    evaluation_prompts: str | None = Field(
        None,
        description="CSV file of held-out items; None: TinyWorld's own, "
        "or for a CSV its last rows (`held_out` of them)",
    )
    held_out: int = Field(0, ge=0, description="rows taken off the end of `prompts` for evaluation")
    publish: str | None = Field(
        None,
        description="folder that also gets every exported LoRA, in one named as the run, e.g. "
        "below ComfyUI's models/loras",
    )
    negative_prompt: str = Field("", description="of prompt rows that have none of their own")
    start_lora: str | None = Field(None, description="a LoRA to start from; the reference policy stays the base model")
    trackers: list[Tracker] = Field(
        [], description="where metrics go beside metrics.jsonl, by accelerate; the package must be installed"
    )
    process_timeout_minutes: float = Field(
        120.0, gt=0, le=10080, description="how long the processes of a run wait for each other before it fails"
    )
    policy: PolicyConfig = PolicyConfig()
    reward: RewardConfig = RewardConfig()
    video: VideoConfig = VideoConfig()
    rollout: RolloutConfig = RolloutConfig()
    optim: OptimConfig = OptimConfig()
    lora: LoraConfig = LoraConfig()
    ema: EmaConfig = EmaConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _possible(self) -> TrainConfig:
        if self.optim.ratio == "guard" and self.rollout.dynamics != "flow_sde":
            raise ValueError(
                "optim.ratio `guard` is defined for rollout.dynamics `flow_sde` only; choose one of the two"
            )
        return self

    def with_absolute_paths(self) -> TrainConfig:
        """The same run started from any folder: paths are made absolute, `~` is expanded, built-in names stay."""

        def absolute(value: str | None) -> str | None:
            return value if value in (None, *BUILT_IN) else str(Path(value).expanduser().absolute())

        own = {
            name: absolute(getattr(self, name)) for name in ("prompts", "evaluation_prompts", "start_lora", "publish")
        }
        policy = {name: absolute(getattr(self.policy, name)) for name in ("source", "text_encoder", "vae")}
        reward = {name: absolute(getattr(self.reward, name)) for name in ("source", "base_model")}
        return self.model_copy(
            update=own
            | {
                "policy": self.policy.model_copy(update=policy),
                "reward": self.reward.model_copy(update=reward),
            }
        )

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


WAN_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，"
    "倒着走"
)
"""Wan 2.1's own default (wan/configs/shared_config.py), which the published recipe, VACE and Phantom use."""
TINY_VIDEO = {"height": 48, "width": 80, "frames": 9}


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = (
            _merge(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
        )
    return merged


PRESETS: dict[str, dict[str, Any]] = {
    # The published recipe, 24 of 25 steps trained.
    "paper": {
        "negative_prompt": WAN_NEGATIVE_PROMPT,
        "policy": {"dtype": "bfloat16"},
        "reward": {"dtype": "bfloat16"},
        "optim": {"gradient_checkpointing": True},
        "evaluation": {"video": {"height": 480, "width": 832, "frames": 81}},
    },
    # A short random window in the noisier half, ratios normalised (GRPO-Guard). Measured at the training size: a held-out
    # video of the published size costs as much as forty of training.
    "fast": {
        "negative_prompt": WAN_NEGATIVE_PROMPT,
        "policy": {"dtype": "bfloat16"},
        "reward": {"dtype": "bfloat16"},
        "rollout": {"window": {"kind": "random", "size": 3}, "steps": 16},
        "optim": {"ratio": "guard", "clip_range": 2e-6, "kl": 0.0, "gradient_checkpointing": True},
        "evaluation": {"steps": 30},
    },
    # TinyWorld on two CPU cores.
    "tiny": {
        "iterations": 24,
        "video": TINY_VIDEO,
        "rollout": {
            "steps": 8,
            "guidance": 1.0,
            "micro_batch": 32,
            "groups_per_update": 16,
            "updates_per_iteration": 1,
            "window": {"kind": "random", "size": 3, "last": 6},
        },
        "optim": {"learning_rate": 2e-3, "clip_range": 1e-5, "micro_batch": 32},
        "ema": {"every": 1},
        "evaluation": {"steps": 8, "items": 48},
    },
}

# The paper names no sampling settings for Phantom. Decided here: shift 5 and the scales 5 (references) and 7.5 (text) of
# Phantom's own release, wherever the published recipe has VACE's shift 3 and guidance 4.5, in training as in evaluation.
# What is trained is then what is used, at three branches a step.
PRESETS["paper-phantom"] = _merge(PRESETS["paper"], {"rollout": {"shift": 5.0, "guidance": 7.5, "image_guidance": 5.0}})
# Training without guidance needs one branch of three; the release's scales are kept for evaluation.
PRESETS["fast-phantom"] = _merge(
    PRESETS["fast"],
    {
        "rollout": {"shift": 5.0, "guidance": 1.0, "image_guidance": 1.0},
        "evaluation": {"guidance": 7.5, "image_guidance": 5.0},
    },
)
PRESETS["tiny-phantom"] = _merge(PRESETS["tiny"], {"policy": {"source": "tinyworld-phantom"}})


RECIPES = ("paper", "fast", "tiny")


def preset_for(recipe: str, kind: PolicyKind) -> str:
    """The preset of a recipe (or of another kind's preset of it) for policies of `kind`."""
    return recipe.removesuffix("-phantom") + "-phantom" * (kind == "phantom")


def make_config(preset: str = "paper", changes: dict[str, Any] | None = None) -> TrainConfig:
    """The preset with `changes` (nested dict) laid over it. Raises UserError with the sentence that says what to change."""
    if preset not in PRESETS:
        raise UserError(f"preset `{preset}` is unknown; choose one of {', '.join(PRESETS)}")
    return _validated(_merge({"preset": preset, **PRESETS[preset]}, changes or {}))


def read_config(path: str | Path) -> TrainConfig:
    """Read a run's frozen `config.yaml`. Raises UserError when it cannot be read, or is of another version."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the configuration {path}: {error}") from error
    try:
        return _validated(values)
    except UserError as error:
        raise UserError(f"{path} is of another version or damaged, start a new run: {error}") from error


def _validated(values: dict[str, Any]) -> TrainConfig:
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        ]
        raise UserError("this configuration cannot run:\n  " + "\n  ".join(lines)) from error
