"""YAML as far as settings need it: plain values, lists and mappings, nested a little."""

from __future__ import annotations

import re
from typing import Any

import yaml

LONGEST = 100_000  # characters
DEEPEST = 20  # lists and mappings inside each other


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


class _PlainLoader(yaml.SafeLoader):
    depth = 0

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


# Without this, `1e-4` would be a text: YAML 1.1 wants a dot and a sign, `1.0e-4`.
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
