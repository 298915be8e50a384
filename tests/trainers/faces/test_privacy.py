"""Nothing leaves the machine, and nothing of a face is kept unless the user saves the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import PICTURES

ROOT = Path(__file__).parents[3]
# Counts what the command connects to, and the files that it writes, by Python's audit events.
PROGRAM = """
import json, os, sys
seen = {"connected": [], "written": []}
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "urllib.Request"):
        seen["connected"].append(str(arguments))
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        seen["written"].append(arguments[0])
    if event in ("os.rename", "os.mkdir"):
        seen["written"].append(str(arguments[-2 if event == "os.mkdir" else 1]))
sys.dont_write_bytecode = True
sys.addaudithook(hook)
from trainers.cli import main
code = main(json.loads(sys.argv[1]))
seen["written"] = [place for place in seen["written"] if place != os.devnull]
print("AUDIT", json.dumps(seen))
sys.exit(code)
"""


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A function: what `faces` with these options connects to and writes, in an empty folder."""
    clip = tmp_path_factory.mktemp("clip")
    (clip / "0.jpg").write_bytes((PICTURES / "obama.jpg").read_bytes())

    def run(folder: Path, *options: str) -> dict[str, list[str]]:
        command = ["faces", str(clip), *options, "--references", str(PICTURES / "obama.jpg")]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps(command)],
            capture_output=True,
            text=True,
            check=True,
            cwd=folder,
            env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(folder), "TMPDIR": str(folder)},
        )
        assert "faces 1.00" in done.stdout
        return json.loads(done.stdout.splitlines()[-1].removeprefix("AUDIT "))

    return run


def test_a_report_connects_to_nothing_and_writes_nothing(audited, tmp_path):
    assert audited(tmp_path) == {"connected": [], "written": []}
    assert list(tmp_path.rglob("*")) == []


def test_what_the_user_saves_are_numbers_without_a_face_or_an_embedding(audited, tmp_path):
    seen = audited(tmp_path, "--save", str(tmp_path / "report.json"))
    assert (
        seen["connected"] == []
        and seen["written"]
        and [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["report.json"]
    )
    (content,) = json.loads((tmp_path / "report.json").read_text())

    def longest(value) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        own = len(value) if isinstance(value, list) else 0
        return max([own, *map(longest, inner)])

    assert longest(content) <= 3
