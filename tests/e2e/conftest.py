"""A real ComfyUI server with the checkout as its only pack, all its files in an empty base folder."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub import serving_files

import comfy_host
from comfy_client import Client
from comfy_server import ending_runs, serving, two_people
from trainers.prompts import PromptItem

REPOSITORY = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSING_SECONDS = 500


@pytest.fixture(scope="session")
def comfyui_python() -> tuple[Path, Path]:
    """ComfyUI's folder and an interpreter that can run it with the pack."""
    found = comfy_host.find()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="session")
def hub() -> Iterator[SimpleNamespace]:
    """The server that this ComfyUI takes for Hugging Face."""
    with serving_files() as state, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", state.url)
        yield state


@pytest.fixture(scope="session")
def comfyui(comfyui_python, tmp_path_factory, hub) -> Iterator[Client]:
    """The running server, on the CPU; with the frontend in the folder COMFYUI_FRONT_END instead of its own, if set."""
    front_end = os.environ.get("COMFYUI_FRONT_END")
    options = ["--cpu", *(["--front-end-root", front_end] if front_end else [])]
    with ending_runs(tmp_path_factory.mktemp("comfyui")) as base, serving(*comfyui_python, base, *options) as client:
        yield client


@pytest.fixture(scope="session")
def node_ids() -> list[str]:
    """Every node that the pack's sources define."""
    found = []
    for path in (REPOSITORY / "nodes").glob("*.py"):
        calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        found += [
            k.value.value
            for call in calls
            for k in call.keywords
            if k.arg == "node_id" and isinstance(k.value, ast.Constant)
        ]
    return sorted(found)


@pytest.fixture(scope="session")
def object_info(comfyui) -> dict:
    return comfyui.object_info()


@pytest.fixture(scope="session")
def item(comfyui) -> PromptItem:
    return two_people(comfyui)


@pytest.fixture(scope="session")
def browse(comfyui):
    """`browse(script, address, *arguments)`: the output of a script of this folder for the editor at that address."""
    node, browser = shutil.which("node"), next(filter(None, map(shutil.which, BROWSERS)), None)
    if not node or not browser:
        pytest.skip(f"the editor was not tried: no {'Node.js' if not node else 'Chromium'} on this machine")
    if subprocess.run([node, "-e", "require.resolve('playwright-core')"], capture_output=True, check=False).returncode:
        pytest.skip(
            "the editor was not tried: no playwright-core (npm install --no-save playwright-core in the checkout)"
        )
    comfyui.post("/settings", {"Comfy.TutorialCompleted": True})

    def run(script: str, address: str, *arguments) -> dict:
        script, address = Path(__file__).with_name(script), f"http://127.0.0.1:{comfyui.port}/{address}"
        line = [node, script, browser, address, *arguments]
        done = subprocess.run(line, capture_output=True, text=True, timeout=BROWSING_SECONDS, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return run
