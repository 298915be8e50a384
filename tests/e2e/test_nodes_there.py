"""tests/nodes again, in the real ComfyUI and with its interpreter."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

import comfy_host

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.timeout(400)
def test_nodes_pass_their_tests_in_the_real_comfyui(tmp_path, record_property):
    if lacking := comfy_host.tests_lack():
        pytest.skip(f"tests/nodes ran on the stand-in alone: {lacking}")
    folder, python = comfy_host.find()
    # Without pyproject.toml's options: plugins they belong to may be missing there.
    options = [
        "-c",
        os.devnull,
        "--rootdir",
        REPOSITORY,
        "--import-mode=importlib",
        "-p",
        "no:cacheprovider",
        "-q",
        "-rs",
    ]
    environment = os.environ | {
        "COMFYUI_TESTS": "real",
        "COMFYUI_PATH": str(folder),
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests' / 'e2e'}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(tmp_path),
        "COLUMNS": "200",
    }
    done = subprocess.run(
        [python, "-m", "pytest", *options, REPOSITORY / "tests" / "nodes"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=390,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    for reason in re.findall(r"^SKIPPED \[\d+\] \S+ (.*)$", done.stdout, re.MULTILINE):
        record_property("skipped", f"in the real ComfyUI: {reason}")
