"""`settings`: every setting of a run, from the configuration classes themselves."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ..config import PRESETS, TrainConfig, make_config
from .tables import markdown_table

LONGEST = 40  # characters of a value in a table


@dataclass(frozen=True)
class Setting:
    """One setting: its dotted name, type, default and meaning."""

    name: str
    type: str
    default: Any
    meaning: str


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--preset", choices=list(PRESETS), help="show this preset's values only (default: all presets)")
    parser.add_argument("--diff", action="store_true", help="only settings that a preset changes")
    parser.add_argument("--markdown", action="store_true", help="as the page web/docs/settings.md")


def main(options: Namespace) -> int:
    presets = [options.preset] if options.preset else list(PRESETS)
    print(page() if options.markdown else markdown_table(rows(presets, options.diff)))
    return 0


def settings(model: type[BaseModel] = TrainConfig, prefix: str = "") -> Iterator[Setting]:
    """All settings of the configuration, sections in depth."""
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from settings(type(field.default), f"{prefix}{name}.")
        elif section := _section(field):
            yield Setting(f"{prefix}{name}", _type(field), field.default, field.description or "")
            yield from settings(section, f"{prefix}{name}.")
        else:
            yield Setting(f"{prefix}{name}", _type(field), field.default, field.description or "")


def rows(presets: list[str], only_changed: bool) -> list[dict[str, str]]:
    """A table row per setting: default, the values of the presets where they differ from it, and the meaning."""
    values = {preset: make_config(preset).model_dump() for preset in presets}
    found = []
    for setting in settings():
        own = {preset: _value(setting, values[preset]) for preset in presets}
        changed = {preset: value for preset, value in own.items() if value != setting.default}
        if only_changed and not changed:
            continue
        found.append(
            {"setting": setting.name, "type": setting.type, "default": _text(setting.default)}
            | {preset: _text(changed[preset]) if preset in changed else "" for preset in presets}
            | {"meaning": setting.meaning}
        )
    return found


def page() -> str:
    """web/docs/settings.md."""
    text = [
        "# Settings",
        "",
        "Every setting of a run. `--set NAME=VALUE` changes one on the command line; a preset's column shows only what it "
        "changes. Made by `python -m trainers settings --markdown`.",
        "",
        markdown_table(rows(list(PRESETS), False)),
    ]
    return "\n".join(text)


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """The class of an optional section, such as `evaluation.video`."""
    kinds = (kind for kind in get_args(field.annotation) if isinstance(kind, type))
    return next((kind for kind in kinds if issubclass(kind, BaseModel)), None)


def _type(field: FieldInfo) -> str:
    choices = [value for value in get_args(field.annotation) if isinstance(value, str)]
    if choices:
        return " or ".join(choices)
    return (
        str(getattr(field.annotation, "__name__", field.annotation)).replace("trainers.config.", "").replace("|", "or")
    )


def _value(setting: Setting, values: Any) -> Any:
    for part in setting.name.split("."):
        if values is None:
            return setting.default
        values = values[part]
    return values


def _text(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
