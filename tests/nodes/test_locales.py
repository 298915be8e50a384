"""The editor's texts in English and Chinese: every node, input, output, category and setting has one, and no more."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
LOCALES = REPOSITORY / "locales"
# What vue-i18n would take for a placeholder, a link or a plural.
SPECIAL = re.compile(r"[{}@|]")


def read(language: str, name: str) -> dict:
    return json.loads((LOCALES / language / f"{name}.json").read_text(encoding="utf-8"))


def texts_of(schema) -> dict:
    """A node's entry of nodeDefs.json, as its schema says it in English."""
    inputs = {i.id: {"name": i.id, "tooltip": i.tooltip} for i in schema.inputs}
    outputs = {str(n): {"name": o.display_name, "tooltip": o.tooltip} for n, o in enumerate(schema.outputs)}
    entry = {"display_name": schema.display_name, "description": schema.description, "inputs": inputs}
    return entry | ({"outputs": outputs} if outputs else {})


@pytest.fixture(scope="module")
def wanted(pack) -> dict:
    return {name: texts_of(pack.nodes[name].GET_SCHEMA()) for name in sorted(pack.nodes)}


def keys(entry, place: str = "") -> set[str]:
    if not isinstance(entry, dict):
        return {place}
    return {key for name, value in entry.items() for key in keys(value, f"{place}.{name}" if place else name)}


def values(entry) -> list[str]:
    return [v for value in entry.values() for v in (values(value) if isinstance(value, dict) else [value])]


def test_english_is_what_the_nodes_say(wanted):
    """`UPDATE_LOCALES=1` writes it anew."""
    file = LOCALES / "en" / "nodeDefs.json"
    if os.environ.get("UPDATE_LOCALES"):
        file.write_text(json.dumps(wanted, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read("en", "nodeDefs") == wanted


@pytest.mark.parametrize("name", ["nodeDefs", "main", "settings"])
def test_chinese_has_the_keys_of_english(name):
    english, chinese = keys(read("en", name)), keys(read("zh", name))
    assert sorted(english - chinese) == [] and sorted(chinese - english) == []


def test_chinese_is_chinese():
    """But for the names of models and files, every description and tooltip has Chinese characters."""
    found = read("zh", "nodeDefs")
    tooltips = [
        t["tooltip"] for n in found.values() for kind in ("inputs", "outputs") for t in n.get(kind, {}).values()
    ]
    assert [
        t for t in [*tooltips, *(n["description"] for n in found.values())] if not re.search("[\u4e00-\u9fff]", t)
    ] == []


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", ["nodeDefs", "main", "settings"])
def test_no_text_is_empty_or_holds_what_the_editor_would_replace(language, name):
    assert [v for v in values(read(language, name)) if not v.strip() or SPECIAL.search(v)] == []


def test_every_category_has_a_name(pack):
    parts = {part for node in pack.nodes.values() for part in node.GET_SCHEMA().category.split("/")}
    assert parts == set(read("en", "main")["nodeCategories"])


def test_every_text_of_the_panel_is_in_chinese_with_the_same_values():
    scripts = [*(REPOSITORY / "web").glob("*.js"), *(REPOSITORY / "web" / "panel").glob("*.js")]
    sources = {path.name: path.read_text(encoding="utf-8") for path in scripts}
    chinese = dict(
        re.findall(r'^  ("(?:[^"\\]|\\.)*"): ("(?:[^"\\]|\\.)*"),$', sources.pop("texts_zh.js"), re.MULTILINE)
    )
    used = {text for source in sources.values() for text in re.findall(r'\b(?:t|key)\(("(?:[^"\\]|\\.)*")', source)}
    assert sorted(used - chinese.keys()) == [] and sorted(chinese.keys() - used) == []
    values = re.compile(r"\{\w+\}")
    assert [k for k, v in chinese.items() if sorted(values.findall(k)) != sorted(values.findall(v))] == []


@pytest.mark.parametrize("script", ["fetch_files.js", "vote.js", "presets.js"])
def test_no_sentence_of_a_dialog_is_in_english_only(script):
    """A text of several words that is not given to `t` or `key`, and is no style."""
    source = re.sub(
        r"^\s*//.*$|\s// .*$", "", (REPOSITORY / "web" / script).read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    found = re.findall(r"""(\b(?:t|key)\()?("(?:[^"\\\n]|\\.)*"|`[^`\n]*`)""", source)
    words = re.compile(r"[A-Za-z]{2,}[.,;]? [A-Za-z]{2,}")
    plain = [re.sub(r"\$\{.*\}", "", text) for known, text in found if not known]
    assert [text for text in plain if words.search(text) and ":" not in text] == []


def test_every_setting_of_the_editor_has_a_name():
    """A setting's `id: "Name.part"`, or a constant in its place."""
    ids = set()
    panel = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "web" / "panel").glob("*.js"))
    for path in (REPOSITORY / "web").glob("*.js"):
        source = path.read_text(encoding="utf-8")
        constants = dict(re.findall(r'^(?:export )?const (\w+) = "([^"]+)";', source + panel, re.MULTILINE))
        for block in re.findall(r"settings: \[(.*?)\n  \}?\],", source, re.DOTALL):
            found = re.findall(r'\bid: (?:"([^"]+)"|(\w+)),', block)
            ids |= {text or constants[name] for text, name in found}
    assert ids and {i.replace(".", "_") for i in ids} == set(read("en", "settings"))
