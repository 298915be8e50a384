"""Processes that end together, and why the first of them did."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest

from trainers.config import make_config
from trainers.runs import process_group
from trainers.runs.folder import RunFolder
from trainers.runs.machines import Machines
from trainers.runs.process_group import ANOTHER, ANOTHER_MACHINES, Failure, note_failure, run_processes

ALONE = Machines()


def python(text: str) -> list[str]:
    return [sys.executable, "-c", f"import os, signal, sys, time; rank = os.environ['RANK']; {text}"]


def test_every_process_finds_its_place_among_those_of_all_machines(tmp_path):
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT"
    write = f"open(sys.argv[1] + rank, 'w').write(' '.join(os.environ[n] for n in '{names}'.split()))"
    assert run_processes([*python(write), f"{tmp_path}/"], 2, Machines(2, 1, "::1:29500")) is None
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {"2": "2 0 4 2 ::1 29500", "3": "3 1 4 2 ::1 29500"}


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_process_that_is_killed_ends_the_others_with_a_signal_of_its_own(tmp_path):
    ready = tmp_path / "ready"
    other = f"signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3)); open({str(ready)!r}, 'w'); time.sleep(60)"
    dying = f"[time.sleep(0.01) for _ in iter(lambda: os.path.exists({str(ready)!r}), True)]; os.kill(os.getpid(), 9)"
    program = python(f"exec({dying!r} if rank == '1' else {other!r})")
    failure = run_processes(program, 2, ALONE)
    assert failure == Failure(1, 2, -signal.SIGKILL)
    assert "process 1 of 2, counted from 0, was killed by SIGKILL (the system does so when memory" in str(failure)


def test_a_process_that_waits_for_the_dead_is_killed(monkeypatch):
    monkeypatch.setattr(process_group, "GRACE_SECONDS", 0.2)
    deaf = "signal.signal(signal.SIGUSR1, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    started = time.monotonic()
    assert run_processes(python(f"exec({deaf!r}) if rank == '0' else sys.exit(2)"), 2, ALONE) == Failure(1, 2, 2)
    assert time.monotonic() - started < 60


def test_each_process_but_the_first_writes_to_a_log_of_its_own(tmp_path, capfd):
    assert run_processes(python("print('I am', rank)"), 2, ALONE, log=lambda rank: tmp_path / f"{rank}.txt") is None
    assert capfd.readouterr().out == "I am 0\n"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"1.txt": "I am 1\n"}


@pytest.fixture
def run(tmp_path) -> RunFolder:
    run = RunFolder.create(tmp_path, make_config("tiny"), "a")
    run.rank_log(1).write_text("one line\nthe last line of process 1\n")
    return run


@pytest.mark.parametrize("known", ["", f"{ANOTHER}; resume", "process 77 has exited; the end of its log"])
def test_the_reason_and_the_end_of_the_log_of_the_dead_process_are_in_the_status(run, known):
    run.set_status(state="failed" if known else "running", last_error=known)
    note_failure(run, Failure(1, 2, 1))
    assert run.status().state == "failed"
    assert run.status().last_error.startswith("process 1 of 2, counted from 0, ended with exit status 1")
    assert run.status().last_error.endswith("the last line of process 1")


def test_a_connection_that_closed_is_the_reason_unless_a_process_of_this_machine_was_first(run):
    run.set_status(state="failed", last_error=f"{ANOTHER_MACHINES}; see its log")
    note_failure(run, Failure(0, 4, 2))
    assert run.status().last_error.startswith(ANOTHER_MACHINES)
    note_failure(run, Failure(1, 4, 1))
    assert run.status().last_error.startswith("process 1 of 4")


def test_an_error_that_the_run_has_reported_stays_its_reason(run):
    run.set_status(state="failed", last_error="the gradient of update 3 is nan")
    note_failure(run, Failure(0, 2, 2))
    assert run.status().last_error == "the gradient of update 3 is nan"
