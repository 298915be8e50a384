"""The workflows in the real editor, in a real browser."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from comfy_graphs import to_api, training

WORKFLOWS = sorted((Path(__file__).parents[2] / "workflows").glob("*.json"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browse(comfyui):
    """`browse(script, *arguments)`: what a script prints that has the editor with the first workflow before it."""
    node, browser = shutil.which("node"), next(filter(None, map(shutil.which, BROWSERS)), None)
    if not node or not browser:
        pytest.skip(f"the editor was not tried: no {'Node.js' if not node else 'Chromium'} on this machine")
    if subprocess.run([node, "-e", "require.resolve('playwright-core')"], capture_output=True, check=False).returncode:
        pytest.skip("the editor was not tried: no playwright-core (npm install playwright-core, NODE_PATH names its node_modules)")
    comfyui.post("/settings", {"Comfy.TutorialCompleted": True})
    address = f"http://127.0.0.1:{comfyui.port}/?template={WORKFLOWS[0].stem}&source=identity-grpo"

    def run(script: str, *arguments) -> dict:
        command = [node, Path(__file__).with_name(script), browser, address, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def editor(browse) -> dict:
    """What the editor makes of each workflow, by file name."""
    return browse("editor.cjs", *WORKFLOWS)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_it_opens_without_a_complaint(editor, workflow):
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


def test_a_run_stays_on_its_node_when_the_page_is_loaded_again_and_its_button_stops_it(browse, comfyui, item):
    comfyui.run(training(item, name="panel", seed=21, iterations=500))
    run = comfyui.get("/identity_grpo/runs")[-1]["id"]
    told = browse("panel.cjs", run)
    assert told["first"] == "no run yet" and told["elsewhere"] == "no run yet"
    assert run in told["again"] and told["buttons"] == {"Stop": True, "Resume": False, "Save now": True}
    assert "stopped" in told["stopped"]
    assert comfyui.get(f"/identity_grpo/runs/{run}")["state"] == "stopped"


def chosen(content: dict) -> dict:
    return {slot: value for slot, value in content["inputs"].items() if value is not None}
