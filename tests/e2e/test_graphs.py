"""The tests' own way from a workflow file to the graph that the editor would queue."""

from __future__ import annotations

import pytest

from comfy_graphs import to_api

INFO = {
    "Load": {
        "input": {"required": {"file": [["a.png", "b.png"], {"image_upload": True}]}},
        "input_order": {"required": ["file"]},
    },
    "Draw": {
        "input": {
            "required": {
                "model": ["MODEL", {}],
                "references": ["COMFY_AUTOGROW_V3", {}],
                "prompt": ["STRING", {"multiline": True}],
                "seed": ["INT", {"control_after_generate": True}],
                "kind": ["COMBO", {"options": ["x", "y"]}],
                "text": ["STRING", {"forceInput": True}],
            },
            "optional": {"strength": ["FLOAT", {}]},
        },
        "input_order": {
            "required": ["model", "references", "prompt", "seed", "kind", "text"],
            "optional": ["strength"],
        },
    },
}


def load(node: int) -> dict:
    return {
        "id": node,
        "type": "Load",
        "mode": 0,
        "inputs": [{"name": "file", "widget": {"name": "file"}, "link": None}],
        "widgets_values": ["b.png", "image"],
    }


def draw(**slots: int) -> dict:
    inputs = [{"name": name.replace("__", "."), "link": link} for name, link in slots.items()]
    return {
        "id": 9,
        "type": "Draw",
        "mode": 0,
        "inputs": inputs,
        "widgets_values": ["two people", 7, "randomize", "y", 0.5],
    }


def link(number: int, origin: int, slot: int = 0) -> list:
    return [number, origin, slot, 9, 0, "*"]


def test_widgets_are_named_and_what_only_the_editor_uses_is_left_out():
    graph = to_api({"nodes": [load(1), draw()], "links": []}, INFO)
    assert graph["1"] == {"class_type": "Load", "inputs": {"file": "b.png"}}
    assert graph["9"]["inputs"] == {"prompt": "two people", "seed": 7, "kind": "y", "strength": 0.5}


def test_a_link_goes_before_a_widget_and_growing_slots_keep_their_names():
    graph = to_api({"nodes": [load(1), draw(references__ref0=5, prompt=6)], "links": [link(5, 1), link(6, 1, 2)]}, INFO)
    assert graph["9"]["inputs"]["references.ref0"] == ["1", 0] and graph["9"]["inputs"]["prompt"] == ["1", 2]


def test_notes_vanish_and_reroutes_are_followed():
    nodes = [
        load(1),
        {"id": 2, "type": "MarkdownNote", "widgets_values": ["hello"]},
        {"id": 3, "type": "Reroute", "inputs": [{"name": "", "link": 5}]},
        draw(text=6),
    ]
    graph = to_api({"nodes": nodes, "links": [[5, 1, 0, 3, 0, "*"], link(6, 3)]}, INFO)
    assert set(graph) == {"1", "9"} and graph["9"]["inputs"]["text"] == ["1", 0]


def test_what_is_muted_is_not_queued():
    graph = to_api({"nodes": [load(1) | {"mode": 2}, draw(references__ref0=5)], "links": [link(5, 1)]}, INFO)
    assert set(graph) == {"9"} and "references.ref0" not in graph["9"]["inputs"]


def test_a_file_from_before_a_widget_was_added_is_noticed():
    with pytest.raises(AssertionError, match="Draw has widgets"):
        to_api({"nodes": [draw() | {"widgets_values": ["two people", 7]}], "links": []}, INFO)
