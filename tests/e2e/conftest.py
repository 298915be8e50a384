"""A real ComfyUI server with the checkout as its only pack, all its files in an empty base folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import comfy_host
from comfy_client import Client
from comfy_server import ending_runs, serving, two_people
from trainers.prompts import PromptItem

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def comfyui_python() -> tuple[Path, Path]:
    """ComfyUI's folder and an interpreter that can run it with the pack."""
    found = comfy_host.find()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture(scope="session")
def comfyui(comfyui_python, tmp_path_factory) -> Iterator[Client]:
    """The running server, on the CPU."""
    with ending_runs(tmp_path_factory.mktemp("comfyui")) as base, serving(*comfyui_python, base, "--cpu") as client:
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
