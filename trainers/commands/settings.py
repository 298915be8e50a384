"""From the words of a command line to a configuration."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import yaml

from ..config import TrainConfig, make_config
from ..errors import UserError

# Options of commands that are settings by another name.
FLAGS = {
    "policy": "policy.source", "reward": "reward.source", "prompts": "prompts", "evaluation_prompts": "evaluation_prompts",
    "held_out": "held_out", "iterations": "iterations", "seed": "seed", "start_lora": "start_lora", "steps": "evaluation.steps",
    "guidance": "evaluation.guidance", "image_guidance": "evaluation.image_guidance", "shift": "rollout.shift",
}
SIZES = ("height", "width", "frames")


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """`["rollout.steps=8", …]` as a nested dict; values are YAML, so 8 is a number and [a, b] a list. Raises UserError."""
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(f"--set {setting}: write it as name=value, e.g. --set rollout.steps=8")
        try:
            _put(changes, key, yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise UserError(f"--set {setting}: the value is not YAML ({error}); quote it") from error
    return changes


def config_from(options: Namespace) -> TrainConfig:
    """The preset, changed by --set and then by the options that were given. Raises UserError for an impossible one."""
    changes = parse_settings(options.set)
    for option, key in FLAGS.items():
        value = getattr(options, option, None)
        if value is not None:
            _put(changes, key, value)
    policy = changes.get("policy", {}).get("source", "tinyworld") if isinstance(changes.get("policy", {}), dict) else None
    preset = options.preset or ("tiny" if policy == "tinyworld" else "paper")
    config = make_config(preset, changes)
    size = {name: getattr(options, name) for name in SIZES if getattr(options, name, None) is not None}
    if not size:
        return config
    video = (config.evaluation.video or config.video).model_dump() | size
    _put(changes, "evaluation.video", video)
    return make_config(preset, changes)


def _put(changes: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        changes = changes.setdefault(section, {})
        if not isinstance(changes, dict):
            raise UserError(f"{key} cannot be set: {section} was already given a value of its own")
    changes[name] = value
