"""The ComfyUI of this machine for the tests."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

from trainers.commands.comfyui import find_comfyui, find_python, missing_requirements

REPOSITORY = Path(__file__).parents[2]


@cache
def find() -> tuple[Path, Path] | str:
    """ComfyUI's folder and an interpreter that runs it with the pack, or what is missing and the remedy."""
    folder = find_comfyui()
    if folder is None:
        return "no ComfyUI on this machine: set COMFYUI_PATH, or run `make comfyui` once"
    python = find_python(folder)
    if python is None:
        return f"no interpreter has what {folder}/requirements.txt asks for; install it into {folder}/.venv"
    if lacking := missing_requirements(REPOSITORY, python):
        return f"{python} lacks {', '.join(lacking)}: run {python} -m pip install -r requirements.txt"
    return folder, python


def tests_lack() -> str | None:
    """Why tests/nodes cannot run in the real ComfyUI; None if they can."""
    found = find()
    if isinstance(found, str):
        return found
    if subprocess.run([found[1], "-c", "import pytest"], capture_output=True, check=False).returncode:
        return f"{found[1]} has no pytest: run {found[1]} -m pip install pytest"
    return None
