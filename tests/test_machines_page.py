"""The scripts of web/docs/machines.md, run by bash with our program's arguments written down in place of training."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from trainers.cli import make_parser
from trainers.commands.options import config_from, launch_from
from trainers.runs.machines import LaunchConfig, Machines

PAGE = Path(__file__).parents[1] / "web" / "docs" / "machines.md"
STUBS = {
    "python": 'printf "%s\\0" "$@" >> "$WRITTEN"; printf "\\n" >> "$WRITTEN"',
    "scontrol": '[ "$*" = "show hostnames a,b" ] && printf "head\\nother\\n"',
    "srun": 'shift; for node in 0 1; do SLURM_NODEID=$node "$@"; done',
}

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the scripts are for bash")


def script(title: str) -> str:
    section = PAGE.read_text(encoding="utf-8").partition(f"### {title}\n")[2]
    return re.search(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[1]


@pytest.fixture
def run(tmp_path):
    """`run(text, **variables)`: the words that our program gets from the script on every machine."""
    for name, text in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)

    def run(text: str, **variables: str) -> list[list[str]]:
        written = tmp_path / "written.txt"
        known = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "WRITTEN": str(written)} | variables
        subprocess.run(["bash", "-eu", "-c", text], env=known, check=True, timeout=60)
        return [line.split("\0")[:-1] for line in written.read_text().splitlines()]

    return run


def require_two_machines_of_eight(lines: list[list[str]]) -> None:
    assert len(lines) == 2
    for rank, (module, package, *words) in enumerate(lines):
        assert (module, package) == ("-m", "trainers")
        options = make_parser(words).parse_args(words)
        assert launch_from(options) == LaunchConfig(8, Machines(2, rank, "head:29500"))
        if words[0] == "train":
            config_from(options)


def test_slurm_starts_the_run_on_every_node(run):
    variables = {"SLURM_JOB_NODELIST": "a,b", "SLURM_NNODES": "2"}
    text = script("SLURM")
    require_two_machines_of_eight(run(text, **variables))


def test_slurm_continues_the_run_as_the_page_says(run):
    """`resume latest` in place of `train` and its settings; --runs and what is behind it stay."""
    text, found = re.subn(r"trainers train .*?(?=--runs)", "trainers resume latest ", script("SLURM"), flags=re.DOTALL)
    assert found == 1
    require_two_machines_of_eight(run(text, SLURM_JOB_NODELIST="a,b", SLURM_NNODES="2"))


def test_skypilot_starts_the_run_on_every_node(run):
    task = yaml.safe_load(script("SkyPilot"))
    assert task["num_nodes"] == 2
    known = {"SKYPILOT_NODE_IPS": "head\nother", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "8"}
    lines = [run(task["run"], SKYPILOT_NODE_RANK=str(rank), **known)[-1] for rank in (0, 1)]
    require_two_machines_of_eight(lines)
