"""The workflows in the real editor, in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from comfy_graphs import to_api
from comfy_server import deleting_runs

WORKFLOWS = sorted((Path(__file__).parents[2] / "workflows").glob("*.json"))
TRAINING = Path(__file__).with_name("training.json")  # a workflow of before the presets filled in their values


@pytest.fixture(scope="module")
def editor(browse) -> dict:
    """What the editor makes of each workflow, by file name."""
    return browse("editor.cjs", f"?template={WORKFLOWS[0].stem}&source=identity-grpo", *WORKFLOWS)


@pytest.fixture(scope="module")
def subgraph(comfyui, browse) -> Iterator[dict]:
    """What the nodes of a training show when they lie within nested subgraphs."""
    with deleting_runs(comfyui):
        yield browse("subgraph.cjs", "", TRAINING)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_it_opens_without_an_error(editor, workflow):
    found = editor[workflow.name]
    assert found["unknown"] == [] and found["dialogs"] == []


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_the_editor_queues_what_the_tests_queue(editor, object_info, workflow):
    ours = to_api(json.loads(workflow.read_text(encoding="utf-8")), object_info)
    theirs = editor[workflow.name]["prompt"]
    assert {n: c["class_type"] for n, c in theirs.items()} == {n: c["class_type"] for n, c in ours.items()}
    # Core's own nodes may have other widgets in another release, or some that depend on a value.
    for name, content in ours.items():
        if content["class_type"].startswith("IdentityGRPO"):
            assert chosen(theirs[name]) == chosen(content)


def test_a_template_opens_as_large_as_it_was_saved(editor):
    saved = json.loads(WORKFLOWS[0].read_text(encoding="utf-8"))["extra"]["ds"]["scale"]
    assert editor[WORKFLOWS[0].name]["scale"] >= saved


def test_a_node_within_subgraphs_shows_its_run_also_when_the_workflow_was_left_meanwhile(subgraph):
    train, run = (f"IdentityGRPO{kind}" for kind in ("Train", "Run"))
    assert [subgraph["before"][kind] for kind in (train, run)] == [{"depth": 2, "text": "Not started: press Run"}] * 2
    (started,) = {subgraph[when][kind]["run"] for when in ("left", "queued") for kind in (train, run)}
    assert started.startswith("tiny-")


def test_a_node_within_a_subgraph_shows_its_text_when_the_workflow_was_left_meanwhile(subgraph):
    shown = subgraph["left"]["IdentityGRPOLoadModel"]
    assert shown["depth"] == 1 and shown["text"].startswith("VACE, ")


def chosen(content: dict) -> dict:
    return {slot: value for slot, value in content["inputs"].items() if value is not None}
