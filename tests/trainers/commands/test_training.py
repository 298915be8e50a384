"""What ends a run on several machines, as the user reads it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from trainers.commands.training import lost_machine_explained
from trainers.config import make_config
from trainers.errors import UserError
from trainers.runs.folder import RunFolder

GLOO = "[pair.cc:547] Connection closed by peer [10.0.0.2]:4242"


@dataclass
class Process0:
    on_several_machines: bool = True
    is_main: bool = True


def failing(tmp_path, ranks: Process0, known: str) -> None:
    """A run that noted `known` as its error when an exchange failed as gloo's do."""
    run = RunFolder.create(tmp_path, make_config("tiny"), "a")
    run.set_status(state="failed", last_error=known)
    with lost_machine_explained(ranks, run):
        raise RuntimeError(GLOO)


def test_a_closed_connection_is_the_end_of_another_machines_process(tmp_path):
    with pytest.raises(UserError, match="another machine's process has ended .*; see the log on that machine"):
        failing(tmp_path, Process0(), GLOO)
    assert RunFolder(next(tmp_path.glob("a-*"))).status().last_error.startswith("another machine's process has ended")


def test_what_the_run_knew_before_stays_its_error(tmp_path):
    with pytest.raises(UserError):
        failing(tmp_path, Process0(), "process 1 has given no sign of life")
    assert RunFolder(next(tmp_path.glob("a-*"))).status().last_error == "process 1 has given no sign of life"


def test_on_one_machine_its_launcher_says_who_ended(tmp_path):
    with pytest.raises(RuntimeError, match="Connection closed by peer"):
        failing(tmp_path, Process0(on_several_machines=False), "")
