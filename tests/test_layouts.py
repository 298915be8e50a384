"""What a template looks like when it opens at 1680x1050: nothing cut, nothing overlaps, no wire runs behind a node."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FILES = sorted((REPOSITORY / "workflows").glob("*.json")) + sorted((REPOSITORY / "subgraphs").glob("*.json"))
WINDOW = (1680, 1050)
TITLE, SLOT, WIDGET = 30, 20, 24  # pixels of the editor
MAP = (1424, 792)  # pixels: what lies right of and below this point is under the map
# Pixels that a node needs with Nodes 2.0 and all advanced inputs, as measured in the editor.
TALLEST = {
    "IdentityGRPOLoadModel": 334,
    "IdentityGRPOLoadReward": 198,
    "LoadImage": 322,
    "LoadVideo": 302,
    "GetVideoComponents": 114,
}
NARROWEST = 225  # pixels that Nodes 2.0 gives a node at least

Point = tuple[float, float]
Box = tuple[float, float, float, float]


def graphs(path: Path) -> Iterator[tuple[str, dict]]:
    """The graph of a file and those of its subgraphs, by name."""
    content = json.loads(path.read_text(encoding="utf-8"))
    yield "", content
    for inner in content["definitions"]["subgraphs"] if "definitions" in content else []:
        yield inner["name"], inner


CASES = [pytest.param(graph, id=f"{path.stem} {name}".strip()) for path in FILES for name, graph in graphs(path)]
TEMPLATES = [pytest.param(next(graphs(path))[1], id=path.stem) for path in FILES if path.parent.name == "workflows"]


def box(node: dict) -> Box:
    """Left, top with the title, right, bottom."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + max(width, NARROWEST), y + max(height, TALLEST.get(node["type"], 0))


def label(node: dict) -> str:
    return node.get("title") or node["type"]


def output_at(node: dict, slot: int) -> Point:
    return node["pos"][0] + node["size"][0], node["pos"][1] + SLOT * (slot + 0.7)


def input_at(node: dict, slot: int) -> Point:
    """Of an input with a widget the place is that of the widget; texts share the height that is left."""
    inputs, (x, y) = node["inputs"], node["pos"]
    if "widget" not in inputs[slot]:
        return x, y + SLOT * (sum("widget" not in entry for entry in inputs[:slot]) + 0.7)
    head = SLOT * max(sum("widget" not in entry for entry in inputs), len(node["outputs"]))
    widgets = [entry["widget"]["name"] for entry in inputs if "widget" in entry]
    texts = [name for name in widgets if name in ("prompt", "negative", "text")]
    free = max(WIDGET, (node["size"][1] - head - WIDGET * (len(widgets) - len(texts))) / max(1, len(texts)))
    above = widgets[: widgets.index(inputs[slot]["widget"]["name"])]
    return x, y + head + 12 + sum(free if name in texts else WIDGET for name in above)


def curve(start: Point, end: Point) -> list[Point]:
    """A link as the editor bends it: a cubic Bézier curve that leaves and arrives horizontally."""
    reach = math.dist(start, end) / 4
    points = (start, (start[0] + reach, start[1]), (end[0] - reach, end[1]), end)
    weights = [((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3) for t in (i / 60 for i in range(61))]
    return [tuple(sum(w * p[axis] for w, p in zip(row, points, strict=True)) for axis in (0, 1)) for row in weights]


def wires(graph: dict) -> Iterator[tuple[str, list[Point]]]:
    """The curve of every link, with what it connects."""
    nodes = {node["id"]: node for node in graph["nodes"]}
    for link in graph["links"]:
        if isinstance(link, dict):
            link = [link[name] for name in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
        _, source, out, target, into = link[:5]
        start = output_at(nodes[source], out) if source in nodes else edge(graph["inputNode"], out, right=True)
        end = input_at(nodes[target], into) if target in nodes else edge(graph["outputNode"], into, right=False)
        names = [label(nodes[name]) if name in nodes else "the subgraph's edge" for name in (source, target)]
        yield " to ".join(names), curve(start, end)


def edge(bracket: dict, slot: int, right: bool) -> Point:
    x, y, width, _ = bracket["bounding"]
    return x + (width if right else 0), y + 14 + SLOT * (slot + 0.5)


@pytest.mark.parametrize("graph", CASES)
def test_no_two_nodes_overlap(graph):
    """Also with Nodes 2.0 and all advanced inputs."""
    found = [
        f"{label(a)}, {label(b)}"
        for a, b in combinations(graph["nodes"], 2)
        for (left, top, right, bottom), other in [(box(a), box(b))]
        if left < other[2] and other[0] < right and top < other[3] and other[1] < bottom
    ]
    assert found == []


@pytest.mark.parametrize("graph", TEMPLATES)
def test_a_node_lies_within_its_group(graph):
    """Also with Nodes 2.0 and all advanced inputs."""
    found = []
    for node in graph["nodes"]:
        left, top, right, bottom = box(node)
        for group in graph["groups"]:
            x, y, width, height = group["bounding"]
            if x < (left + right) / 2 < x + width and y < (top + bottom) / 2 < y + height:
                inside = x <= left and y <= top and right <= x + width and bottom <= y + height
                found += [] if inside else [f"{label(node)} leaves {group['title']}"]
    assert found == []


@pytest.mark.parametrize("graph", CASES)
def test_no_wire_runs_behind_a_node(graph):
    found = set()
    for name, points in wires(graph):
        for node in graph["nodes"]:
            (left, top), right = box(node)[:2], node["pos"][0] + node["size"][0]
            bottom = node["pos"][1] + node["size"][1]
            if any(left + 3 < x < right - 3 and top < y < bottom for x, y in points):
                found.add(f"{name} behind {label(node)}")
    assert sorted(found) == []


@pytest.mark.parametrize("graph", CASES)
def test_the_edges_of_a_subgraph_lie_beside_its_nodes(graph):
    lefts, rights = ([box(node)[place] for node in graph["nodes"]] for place in (0, 2))
    for bracket in (graph.get("inputNode"), graph.get("outputNode")):
        if bracket:
            x, _, width, _ = bracket["bounding"]
            assert x + width < min(lefts) or x > max(rights)


@pytest.mark.parametrize("graph", TEMPLATES)
def test_a_template_opens_with_every_node_in_the_window(graph):
    """And with the last column, where results are shown, above the map."""
    scale, (x, y) = graph["extra"]["ds"]["scale"], graph["extra"]["ds"]["offset"]
    assert 0.8 <= scale <= 1
    for node in graph["nodes"]:
        _, _, right, bottom = box(node)
        right, bottom = (right + x) * scale, (bottom + y) * scale
        assert right < 1610 and bottom < WINDOW[1] and not (right > MAP[0] and bottom > MAP[1]), label(node)
