"""The shared workflow files, in a real ComfyUI."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from comfy_client import Refused
from comfy_graphs import NOTES, to_api

WORKFLOWS = sorted((Path(__file__).parents[2] / "workflows").glob("*.json"))
# What a workflow may lack on a machine without the files it names.
FILES = re.compile(r"not in list|there is no (model|file|reward|base model|prompt set|LoRA|run)|Invalid (image|video) file")


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request) -> Path:
    return request.param


def test_comfyui_lists_them_as_templates(comfyui):
    assert sorted(comfyui.get("/workflow_templates").get("identity-grpo", [])) == [path.stem for path in WORKFLOWS]


def test_it_is_served_with_its_picture(comfyui, workflow):
    place = "/api/workflow_templates/identity-grpo"
    assert comfyui.get(f"{place}/{workflow.stem}.json") == json.loads(workflow.read_text(encoding="utf-8"))
    assert comfyui.bytes(f"{place}/{workflow.stem}.jpg").startswith(b"\xff\xd8\xff")


def test_it_can_be_opened_by_its_address(workflow):
    """The editor's `?template=` takes plain names only."""
    assert re.fullmatch(r"[\w.-]+", workflow.stem, re.ASCII)


def test_it_carries_notes(workflow):
    nodes = json.loads(workflow.read_text(encoding="utf-8"))["nodes"]
    assert any(node["type"] in NOTES and len(node["widgets_values"][0]) > 40 for node in nodes)


def test_it_lacks_files_at_most(comfyui, object_info, workflow):
    """Every node, input, widget and link is there; only files may have to be chosen."""
    content = json.loads(workflow.read_text(encoding="utf-8"))
    assert {n["type"] for n in content["nodes"]} - set(object_info) <= {*NOTES, "Reroute"}
    graph = to_api(content, object_info)
    try:
        prompt = comfyui.queue(graph)
    except Refused as refused:
        told = [text for problems in refused.problems.values() for text in problems]
        assert told and [text for text in told if not FILES.search(text)] == []
    else:
        comfyui.post("/queue", {"delete": [prompt]})
        comfyui.post("/interrupt")
        comfyui.settle()
