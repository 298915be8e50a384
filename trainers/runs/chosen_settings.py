"""A run's settings beside those of its preset."""

from __future__ import annotations

import json
from typing import Any

from ..config import PRESETS, RunConfig, TrainConfig, make_config
from ..config.refusals import allowed, fields


def chosen_settings(config: RunConfig) -> list[dict[str, Any]]:
    """Every setting in the order of the configuration: `name`, `value` and `preset` as `--set` reads them, whether it
    `differs`, what it may be (`type`), its `meaning`, and the plain `number`: a number or switch, None for the others.

    A setting of an optional section that is left out has the section's default.
    """
    known = isinstance(config, TrainConfig) and config.preset in PRESETS
    preset = make_config(config.preset).model_dump() if known else {}
    own = config.model_dump()
    found = []
    for name, field in fields(type(config)):
        if name in ("preset", "kind"):
            continue
        value = setting_value(own, name, field.default)
        usual = setting_value(preset, name, value if field.is_required() else field.default)
        found.append(
            {
                "name": name,
                "value": setting_text(value),
                "preset": setting_text(usual),
                "differs": value != usual,
                "type": allowed(field),
                "meaning": field.description or "",
                "number": value if isinstance(value, int | float) else None,
            }
        )
    return found


def setting_value(values: dict[str, Any], name: str, default: Any) -> Any:
    """The value with this dotted name; the default in an optional section that is not there."""
    value: Any = values
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return default
        value = value[part]
    return value


def setting_text(value: Any) -> str:
    """As `--set` reads it."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)
