"""`settings`: every setting of a run, from the configuration classes themselves."""

from __future__ import annotations

import textwrap
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..config import PRESETS, TrainConfig, make_config
from ..config.refusals import allowed, fields
from ..runs.chosen_settings import setting_text, setting_value
from .tables import markdown_table

INTRODUCTION = """\
# Settings

Every setting of a run; `python -m trainers settings --markdown` writes this page. Change one with `--set NAME=VALUE`,
e.g. `--set rollout.group_size=4`; values are YAML. A preset's value is shown where it differs from the default.
"""


@dataclass(frozen=True)
class Setting:
    """One setting: dotted name, what it may be, default and preset values as YAML, meaning.

    `presets`: the presets whose value is not the default.
    """

    name: str
    type: str
    default: str
    presets: dict[str, str]
    meaning: str


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--preset", choices=list(PRESETS), help="compare with this preset only (default: with all)")
    parser.add_argument("--diff", action="store_true", help="only settings that a preset changes")
    parser.add_argument("--markdown", action="store_true", help="as a page of tables, one for each section")


def main(options: Namespace) -> int:
    found = list(settings([options.preset] if options.preset else list(PRESETS), options.diff))
    print(page(found) if options.markdown else "\n".join(map(_paragraph, found)))
    return 0


def settings(presets: Sequence[str] = tuple(PRESETS), only_changed: bool = False) -> Iterator[Setting]:
    """All settings in the order of the configuration, or those that one of the presets changes."""
    configs = {preset: make_config(preset).model_dump() for preset in presets}
    for name, field in fields(TrainConfig):
        if name == "preset":
            continue  # chosen by --preset
        found = {preset: setting_value(config, name, field.default) for preset, config in configs.items()}
        changed = {preset: setting_text(value) for preset, value in found.items() if value != field.default}
        if changed or not only_changed:
            yield Setting(name, allowed(field), setting_text(field.default), changed, field.description or "")


def page(found: Sequence[Setting] | None = None) -> str:
    """The settings as a page in markdown: the run's own first, then a table for every section."""
    sections: dict[str, list[Setting]] = {}
    for setting in settings() if found is None else found:
        sections.setdefault(setting.name.rpartition(".")[0], []).append(setting)
    parts = [INTRODUCTION]
    for section, members in sections.items():
        parts.append(f"## {section}\n" if section else "## The run\n")
        parts.append(markdown_table([_row(setting) for setting in members]) + "\n")
    return "\n".join(parts).rstrip("\n")


def _row(setting: Setting) -> dict[str, str]:
    return {
        "setting": f"`{setting.name}`",
        "type": setting.type,
        "default": f"`{setting.default}`",
        "presets": "; ".join(f"{names}: `{value}`" for names, value in _grouped(setting)),
        "meaning": setting.meaning.replace("|", "\\|"),
    }


def _paragraph(setting: Setting) -> str:
    lines = [f"{setting.name} = {setting.default}", f"    {setting.type}"]
    lines += textwrap.wrap(setting.meaning, 100, initial_indent="    ", subsequent_indent="    ")
    lines += [f"    {names}: {value}" for names, value in _grouped(setting)]
    return "\n".join(lines) + "\n"


def _grouped(setting: Setting) -> list[tuple[str, str]]:
    """The presets that agree on a value together."""
    groups: dict[str, list[str]] = {}
    for preset, value in setting.presets.items():
        groups.setdefault(value, []).append(preset)
    return [(", ".join(presets), value) for value, presets in groups.items()]
