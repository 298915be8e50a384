"""From the words of a command line to a configuration."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import yaml

from ..config import BUILT_IN, PolicyKind, TrainConfig, make_config, preset_for
from ..errors import UserError

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
    "steps": "evaluation.steps",
    "guidance": "evaluation.guidance",
    "image_guidance": "evaluation.image_guidance",
    "shift": "rollout.shift",
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
    preset = options.preset or _preset_of(changes)
    config = make_config(preset, changes)
    _check_preset(config)
    size = {name: getattr(options, name) for name in SIZES if getattr(options, name, None) is not None}
    if not size:
        return config
    video = (config.evaluation.video or config.video).model_dump() | size
    _put(changes, "evaluation.video", video)
    return make_config(preset, changes)


def _preset_of(changes: dict[str, Any]) -> str:
    """What the given policy is trained with when nobody says."""
    policy = changes.get("policy")
    source = str(policy.get("source", "tinyworld")) if isinstance(policy, dict) else "tinyworld"
    return preset_for("tiny" if source in BUILT_IN else "paper", _kind_of(source) or "vace")


def _kind_of(source: str) -> PolicyKind | None:
    """None where it cannot be told: whoever loads the policy says why."""
    if source in BUILT_IN:
        return BUILT_IN[source]
    from ..policies.load import recognise

    try:
        return recognise(source)
    except UserError:
        return None


def _check_preset(config: TrainConfig) -> None:
    kind, source = _kind_of(config.policy.source), config.policy.source
    if kind and config.preset != (fitting := preset_for(config.preset, kind)):
        raise UserError(
            f"preset `{config.preset}` does not fit {source}, which is a {kind} model; use --preset {fitting}, "
            "or another --policy"
        )


def _put(changes: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        changes = changes.setdefault(section, {})
        if not isinstance(changes, dict):
            raise UserError(f"{key} cannot be set: {section} was already given a value of its own")
    changes[name] = value
