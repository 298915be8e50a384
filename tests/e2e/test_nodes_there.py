"""The tests of the nodes, once more, inside the real ComfyUI and with its interpreter."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.timeout(400)
def test_nodes_pass_their_tests_in_the_real_comfyui(comfyui_python, tmp_path, record_property):
    folder, python = comfyui_python
    if subprocess.run([python, "-c", "import pytest"], capture_output=True, check=False).returncode:
        pytest.skip(f"{python} has no pytest, so tests/nodes ran on the stand-in alone: run {python} -m pip install pytest")
    # Without pyproject.toml's options: plugins they belong to may be missing there.
    options = ["-c", os.devnull, "--rootdir", REPOSITORY, "--import-mode=importlib", "-p", "no:cacheprovider", "-q", "-rs"]
    environment = os.environ | {
        "COMFYUI_TESTS": "real", "COMFYUI_PATH": str(folder), "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(tmp_path), "COLUMNS": "200",
    }
    done = subprocess.run([python, "-m", "pytest", *options, REPOSITORY / "tests" / "nodes"], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, timeout=390, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    for reason in re.findall(r"^SKIPPED \[\d+\] \S+ (.*)$", done.stdout, re.MULTILINE):
        record_property("skipped", f"in the real ComfyUI: {reason}")
