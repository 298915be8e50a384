"""The validated configuration of a training run: made from a preset and changes, or read from a run's file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import UserError, meant, shown
from ..files import require_regular
from .loras import split_strength
from .plain_yaml import LONGEST, parse_yaml
from .presets import PRESETS, RECIPES, WAN_NEGATIVE_PROMPT, merge
from .refusals import explain
from .reward_run import RewardRunConfig
from .sections import (
    BUILT_IN,
    BUILT_IN_LORAS,
    TINYWORLD_WEIGHTS,
    AlignmentRewardConfig,
    PolicyConfig,
    PolicyKind,
    RewardConfig,
    RolloutConfig,
    TrainConfig,
)

__all__ = [
    "BUILT_IN",
    "BUILT_IN_LORAS",
    "PRESETS",
    "RECIPES",
    "TINYWORLD_WEIGHTS",
    "WAN_NEGATIVE_PROMPT",
    "AlignmentRewardConfig",
    "PolicyConfig",
    "PolicyKind",
    "RewardConfig",
    "RewardRunConfig",
    "RolloutConfig",
    "RunConfig",
    "TrainConfig",
    "change_config",
    "make_config",
    "parse_yaml",
    "preset_for",
    "read_config",
    "split_strength",
]


RunConfig = TrainConfig | RewardRunConfig
"""What a run's `config.yaml` may hold."""
ALWAYS_LAST = "checkpoint"
"""The last section that every version has written: of a file that was cut off, the rest must not become defaults."""


def preset_for(recipe: str, kind: PolicyKind) -> str:
    """The preset of a recipe (or of another kind's preset of it) for policies of `kind`."""
    return recipe.removesuffix("-phantom") + "-phantom" * (kind == "phantom")


def make_config(
    preset: str = "paper", changes: dict[str, Any] | None = None, options: Mapping[str, str] | None = None
) -> TrainConfig:
    """The preset with `changes` (nested dict) laid over it.

    Raises UserError that names every setting to change; those in `options` by the name they were given by
    (`evaluation.steps` -> `--steps`).
    """
    if preset not in PRESETS:
        raise UserError(
            f"preset `{shown(preset)}` is unknown; choose one of {', '.join(PRESETS)}{meant(preset, PRESETS)}"
        )
    changes = changes or {}
    if "preset" in changes:
        raise UserError("`preset` is no setting to change; choose the preset itself (--preset)")
    values = merge({"preset": preset, **PRESETS[preset]}, changes)
    evaluation, video = values.get("evaluation"), values.get("video")
    if isinstance(evaluation, dict) and isinstance(evaluation.get("video"), dict) and isinstance(video, dict):
        # Sizes that are left out are the training's.
        evaluation["video"] = video | evaluation["video"]
    return _validated(values, options or {})


def change_config(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """The configuration with `changes` (nested dict) laid over it. Raises UserError as `make_config`."""
    if "preset" in changes:
        raise UserError("`preset` is no setting to change; start a new run with the other preset")
    return _validated(merge(config.model_dump(), changes), {}, type(config))


def read_config(path: str | Path) -> RunConfig:
    """Read a run's frozen `config.yaml`. Raises UserError when it cannot be read, or is of another version."""
    try:
        require_regular(path)
        with open(path, encoding="utf-8") as file:
            values = parse_yaml(file.read(LONGEST + 1))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the configuration {path}: {error}") from error
    try:
        of_reward = isinstance(values, dict) and values.get("kind") == "reward"
        config = _validated(values, {}, RewardRunConfig if of_reward else TrainConfig)
    except UserError as error:
        raise UserError(f"{path} is of another version or damaged, start a new run: {error}") from error
    if not of_reward and ALWAYS_LAST not in values:
        raise UserError(
            f"{path} is not complete: it has no section `{ALWAYS_LAST}`; put the whole file back, or start a new run"
        )
    return config


def _validated(values: Any, options: Mapping[str, str], kind: type[RunConfig] = TrainConfig) -> RunConfig:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(f"this configuration cannot run:\n  {explain(error, kind, options)}") from error
