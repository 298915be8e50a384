"""The workflows in the real editor, in a real browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from comfy_graphs import to_api
from comfy_server import runs_in
from trainers.processes import alive
from trainers.runs.launcher import stop
from trainers.runs.registry import find

WORKFLOWS = sorted((Path(__file__).parents[2] / "workflows").glob("*.json"))
TRAINING = Path(__file__).with_name("training.json")  # a workflow of before the presets filled in their values


@pytest.fixture(scope="module")
def editor(browse) -> dict:
    """What the editor makes of each workflow, by file name."""
    return browse("editor.cjs", f"?template={WORKFLOWS[0].stem}&source=identity-grpo", *WORKFLOWS)


@pytest.fixture(scope="module")
def runs(comfyui) -> Path:
    """ComfyUI's private folder of runs."""
    return comfyui.base / "user" / "__identity_grpo" / "runs"


@pytest.fixture(scope="module")
def subgraph(comfyui, browse, runs) -> Iterator[dict]:
    """What the nodes of a training show when they lie within nested subgraphs."""
    with ending(comfyui):
        yield browse("subgraph.cjs", "", TRAINING)


@pytest.fixture(scope="module")
def panels(comfyui, browse, runs) -> Iterator[dict]:
    """What the panels of a training show from the queue to the end of the run."""
    with ending(comfyui):
        yield browse("panel.cjs", "", runs, TRAINING)


@contextmanager
def ending(comfyui) -> Iterator[None]:
    """Stop and delete the runs of the block at its end."""
    before = {run.id for run in runs_in(comfyui.base)}
    try:
        yield
    finally:
        for run in runs_in(comfyui.base):
            if run.id not in before:
                stop(run, 5)
                shutil.rmtree(run.path)
                shutil.rmtree(comfyui.base / "models" / "loras" / "identity_grpo" / run.id, ignore_errors=True)


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


def test_a_node_shows_the_run_that_it_started(panels):
    assert [panels["before"][kind] for kind in ("Train", "Run")] == [{"text": "no run yet", "able": []}] * 2
    assert panels["queued"]["text"].startswith("tiny-")


def test_a_page_loaded_again_still_shows_the_run(panels):
    for kind in ("Train", "Run"):
        assert run_of(panels["reloaded"][kind]) == run_of(panels["queued"])
        assert panels["reloaded"][kind]["able"] == ["Stop", "Save now"]


def test_a_server_that_does_not_answer_is_shown_and_asked_again(panels):
    assert panels["away"]["able"] == [] and run_of(panels["away"]) == run_of(panels["queued"])
    assert run_of(panels["back"]) == run_of(panels["queued"])


def test_a_stopping_run_is_shown_and_a_second_click_does_no_harm(panels):
    assert panels["clicked"]["able"] == [] and panels["beside"]["able"] == ["Stop"]
    assert all("stopping" in panels["twice"][kind]["text"] for kind in ("Train", "Run"))
    assert panels["stopped"]["able"] == ["Resume"]


def test_a_run_that_was_stopped_has_no_process(panels, runs):
    status = find(runs, run_of(panels["queued"])).status()
    assert status.state == "stopped" and not alive(status.pid, status.pid_started)


def test_after_a_resume_every_node_of_the_run_shows_it_again(panels):
    assert run_of(panels["resumed"]) == run_of(panels["resumedBeside"]) == run_of(panels["queued"])
    assert panels["stoppedAgain"]["able"] == ["Resume"]


def test_a_workflow_that_was_left_while_it_was_executed_shows_its_run(panels):
    assert run_of(panels["left"]) == run_of(panels["queued"])


def test_a_run_of_another_machine_is_requested_once_and_shown_as_none(panels):
    assert panels["gone"]["panels"]["Train"] == {"text": "no run yet", "able": []}
    (asked,) = (url for url in panels["gone"]["asked"] if "gone-" in url)
    assert asked.endswith("/identity_grpo/runs/gone-20200101-000000-0000")
    assert panels["gone"]["toasts"] == 0


def test_a_workflow_cannot_send_the_panel_to_another_address(panels):
    assert panels["gone"]["panels"]["Run"] == {"text": "no run yet", "able": []}
    assert not [url for url in panels["gone"]["asked"] if "elsewhere" in url]


def test_a_node_within_subgraphs_shows_its_run_also_when_the_workflow_was_left_meanwhile(subgraph):
    train, run = (f"IdentityGRPO{kind}" for kind in ("Train", "Run"))
    assert [subgraph["before"][kind] for kind in (train, run)] == [{"depth": 2, "text": "no run yet"}] * 2
    (started,) = {run_of(subgraph[when][kind]) for when in ("left", "queued") for kind in (train, run)}
    assert started.startswith("tiny-")


def test_a_node_within_a_subgraph_shows_its_text_when_the_workflow_was_left_meanwhile(subgraph):
    shown = subgraph["left"]["IdentityGRPOLoadModel"]
    assert shown["depth"] == 1 and shown["text"].startswith("VACE, ")


def run_of(panel: dict) -> str:
    return panel["text"].partition(":")[0]


def chosen(content: dict) -> dict:
    return {slot: value for slot, value in content["inputs"].items() if value is not None}
