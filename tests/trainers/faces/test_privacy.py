"""Nothing leaves the machine, and nothing of a face is kept unless the user saves the report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import PICTURES

ROOT = Path(__file__).parents[3]
# What each command connects to, and the files that it writes, by Python's audit events.
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
for folder, command in json.loads(sys.argv[1]):
    os.chdir(folder)
    os.environ["HOME"] = os.environ["TMPDIR"] = folder
    seen |= {"connected": [], "written": []}
    assert main(command) == 0
    seen["written"] = [place for place in seen["written"] if place != os.devnull]
    print("AUDIT", json.dumps(seen))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """Where a report is shown, and where one is shown and saved."""
    return tmp_path_factory.mktemp("shown"), tmp_path_factory.mktemp("saved")


@pytest.fixture(scope="module")
def audited(folders, tmp_path_factory) -> list[dict[str, list[str]]]:
    """What `faces` connects to and writes in each of the folders, which are empty."""
    clip, (shown, saved) = tmp_path_factory.mktemp("clip"), folders
    (clip / "0.jpg").write_bytes((PICTURES / "obama.jpg").read_bytes())
    command = ["faces", str(clip), "--references", str(PICTURES / "obama.jpg")]
    commands = [[str(shown), command], [str(saved), [*command, "--save", str(saved / "report.json")]]]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=True,
        cwd=shown,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(shown), "TMPDIR": str(shown)},
    )
    assert done.stdout.count("faces 1.00") == 2
    lines = done.stdout.splitlines()
    return [json.loads(line.removeprefix("AUDIT ")) for line in lines if line.startswith("AUDIT ")]


def test_a_report_connects_to_nothing_and_writes_nothing(audited, folders):
    assert audited[0] == {"connected": [], "written": []}
    assert list(folders[0].rglob("*")) == []


def test_what_the_user_saves_are_numbers_without_a_face_or_an_embedding(audited, folders):
    seen, saved = audited[1], folders[1]
    assert (
        seen["connected"] == []
        and seen["written"]
        and [p.name for p in saved.rglob("*") if p.is_file()] == ["report.json"]
    )
    (content,) = json.loads((saved / "report.json").read_text())

    def longest(value) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        own = len(value) if isinstance(value, list) else 0
        return max([own, *map(longest, inner)])

    assert longest(content) <= 3
