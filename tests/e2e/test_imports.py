"""The pack's imports and calls of core, checked against the ComfyUI of this machine."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def test_core_has_all_that_the_pack_imports_and_calls(comfyui_python, tmp_path):
    folder, _ = comfyui_python
    if find_spec("comfy_import_guard") is None:
        pytest.skip("imports of core were not checked: pip install comfy-import-guard")
    if not (folder / ".git").exists():
        pytest.skip(f"imports of core were not checked: {folder} is no git checkout")
    packs, cache = tmp_path / "install" / "custom_nodes", tmp_path / "cache"
    packs.mkdir(parents=True)
    cache.mkdir()
    (packs / "identity-grpo").symlink_to(REPOSITORY, target_is_directory=True)
    (cache / "ComfyUI").symlink_to(folder, target_is_directory=True)
    options = ["--offline", "--no-update", "--strict", "--target", "HEAD", "--cache-dir", cache]
    line = [sys.executable, "-m", "comfy_import_guard.cli", "check", "--comfy-dir", packs.parent, *options]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "1 safe" in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]
