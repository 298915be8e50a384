"""YAML as far as settings need it: plain values, lists and mappings, nested a little.

Plain values are those of YAML 1.2's core schema, in decimal: null, true and false, numbers; all else is text. PyYAML
reads YAML 1.1, in which `8:30` is the number 510, `010` is 8, `no` is false and `2024-01-01` a date.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

LONGEST = 100_000  # characters
DEEPEST = 20  # lists and mappings inside each other
MOST_DIGITS = 4000  # Python reads no more than 4300


def parse_yaml(text: str) -> Any:
    """The value of a YAML text. Raises ValueError for what is not YAML.

    Aliases and tags are refused as well, names given twice, and texts too long or too deeply nested: a few lines with
    aliases can stand for gigabytes, and nesting without end overflows the stack.
    """
    if len(text) > LONGEST:
        raise ValueError(f"it has {len(text)} characters, at most {LONGEST} are read")
    try:
        return yaml.load(text, _PlainLoader)
    except yaml.MarkedYAMLError as error:
        raise ValueError(error.problem or error.context or "it is not YAML") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from error


def parse_value(text: str) -> Any:
    """As `parse_yaml`, but `#` begins no comment: a value of the command line has none, and would lose its end."""
    mark = next(letter for letter in map(chr, range(0xE000, 0xF8FF)) if letter not in text)
    return _replace(parse_yaml(text.replace("#", mark)), mark, "#")


def dump_yaml(value: Any) -> str:
    """The YAML of plain values, lists and mappings that `parse_yaml` reads back; names keep their order."""
    return yaml.dump(value, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)


def _replace(value: Any, old: str, new: str) -> Any:
    """`old` by `new` in all texts of a parsed value."""
    if isinstance(value, dict):
        return {_replace(k, old, new): _replace(v, old, new) for k, v in value.items()}
    if isinstance(value, list):
        return [_replace(v, old, new) for v in value]
    return value.replace(old, new) if isinstance(value, str) else value


class _PlainLoader(yaml.SafeLoader):
    depth = 0
    yaml_implicit_resolvers: ClassVar[dict] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.MarkedYAMLError(problem="anchors (&) and aliases (*) are not read")
        if getattr(event, "tag", None):
            raise yaml.MarkedYAMLError(problem="tags (!) are not read")
        if self.depth == DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"it is nested more than {DEEPEST} levels deep")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names: set[str] = set()
        for name in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if name in names:
                raise yaml.MarkedYAMLError(problem=f"`{name}` is given twice")
            names.add(name)
        return super().construct_mapping(node, deep)

    def construct_plain_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MOST_DIGITS:
            raise yaml.MarkedYAMLError(problem=f"a number of {len(node.value)} digits is not read")
        return int(node.value)

    def construct_plain_float(self, node: yaml.ScalarNode) -> float:
        text = node.value.lower()
        return float(text.replace(".", "") if text.endswith((".inf", ".nan")) else text)


class _PlainDumper(yaml.SafeDumper):
    """Quotes the texts that YAML 1.1 or 1.2 would read as something else."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # PyYAML's other styles fold line breaks, of which it does not get every one back.
        return self.represent_scalar(
            "tag:yaml.org,2002:str", text, '"' if text.splitlines() not in ([], [text]) else None
        )


NUMBER = list("-+.0123456789")
for tag, pattern, first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", NUMBER),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", NUMBER),
):
    for reader in (_PlainLoader, _PlainDumper):
        reader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"), first)
_PlainDumper.add_representer(str, _PlainDumper.represent_text)
_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_plain_int)
_PlainLoader.add_constructor("tag:yaml.org,2002:float", _PlainLoader.construct_plain_float)
