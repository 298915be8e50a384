"""The list of settings is that of the configuration classes."""

from __future__ import annotations

import pytest

from trainers.cli import main
from trainers.commands.options import parse_settings
from trainers.commands.settings import page, settings
from trainers.config import PRESETS, TrainConfig, make_config


def value_of(config: dict, name: str):
    for part in name.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_printed_of_a_preset_makes_it(preset):
    """Every default and every preset's value, given back by --set over another preset, is that preset."""
    found = [s for s in settings([preset]) if not s.name.startswith("evaluation.video.")]
    given = parse_settings([f"{s.name}={s.presets.get(preset, s.default)}" for s in found if not _is_section(s)])
    sizes = make_config(preset).model_dump()["evaluation"]["video"]
    given["evaluation"]["video"] = sizes
    other = "tiny" if preset != "tiny" else "paper"
    assert make_config(other, given).model_dump() | {"preset": preset} == make_config(preset).model_dump()


def _is_section(setting) -> bool:
    return setting.type.startswith("section")


def test_every_setting_is_listed_once_with_type_and_meaning(capsys):
    assert main(["settings"]) == 0
    text = capsys.readouterr().out
    listed = [line.partition(" = ")[0] for line in text.splitlines() if line[:1].strip()]
    expected = dict(_values(make_config("paper").model_dump()))
    assert set(expected) - {"preset"} <= set(listed) and len(listed) == len(set(listed))
    assert all(s.meaning and s.type for s in settings())


def _values(config: dict, prefix: str = ""):
    for name, value in config.items():
        yield from _values(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]


def test_one_preset_and_its_changes_alone(capsys):
    default, fast = (dict(_values(config.model_dump())) for config in (TrainConfig(), make_config("fast")))
    assert main(["settings", "--preset", "fast", "--diff"]) == 0
    text = capsys.readouterr().out
    listed = [line.partition(" = ")[0] for line in text.splitlines() if line[:1].strip()]
    assert listed == [name for name in default if fast[name] != default[name] and name != "preset"]
    assert f"    fast: {fast['rollout.steps']}" in text and "paper" not in text


def test_presets_that_agree_are_named_together():
    (row,) = [line for line in page().splitlines() if line.startswith("| `policy.dtype` ")]
    assert "paper, fast, distilled, paper-phantom, fast-phantom, distilled-phantom: `bfloat16`" in row


def test_the_page_has_a_table_for_every_section():
    titles = [line for line in page().splitlines() if line.startswith("#")]
    assert titles[:3] == ["# Settings", "## The run", "## policy"]
    assert "## rollout.window" in titles and len(titles) == len(set(titles))
    widths = {line.count(" | ") for line in page().splitlines() if line.startswith("| ")}
    assert widths == {4}
