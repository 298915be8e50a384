"""How the training of a run ends: its state, its error, and who has to know."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import pytest

from trainers.config import make_config
from trainers.errors import Stopped, UserError
from trainers.runs.ending import Ending
from trainers.runs.folder import RunFolder


@dataclass
class Process:
    is_main: bool = True
    count: int = 1


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path, make_config("tiny"), "a")


def end(run: RunFolder, error: BaseException | None = None, **process) -> Ending:
    ending = Ending(run, Process(**process))
    with ending.awaited():
        if error:
            raise error
    ending.write(iteration=3)
    return ending


def test_what_reaches_its_end_is_finished(run):
    end(run)
    assert (run.status().state, run.status().iteration) == ("finished", 3)


def test_a_stop_is_answered(run):
    run.request("stop")
    end(run, Stopped())
    assert run.status().state == "stopped" and not run.requested("stop")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_closed_terminal_is_a_stop_before_the_next_step(run):
    before, whole = signal.signal(signal.SIGHUP, signal.default_int_handler), False  # as the command line has it
    try:
        ending = Ending(run, Process())
        with ending.awaited():
            os.kill(os.getpid(), signal.SIGHUP)
            whole = True
            ending.check()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert whole and ending.state == "stopped"


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_what_nohup_started_ignores_a_closed_terminal(run):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        ending = Ending(run, Process())
        with ending.awaited():
            os.kill(os.getpid(), signal.SIGHUP)
            ending.check()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ending.state == "finished"


def test_an_error_is_the_reason_of_a_failed_run(run):
    with pytest.raises(UserError):
        end(run, UserError("the clip is broken"))
    assert (run.status().state, run.status().last_error) == ("failed", "the clip is broken")
    assert run.status().message == ""  # it loads no models any more


def test_the_first_reason_of_a_failed_run_stays(run):
    ending = Ending(run, Process())
    with pytest.raises(RuntimeError), ending.awaited():
        run.set_status(state="failed", last_error="process 1 has given no sign of life")
        raise RuntimeError("connection closed")
    assert run.status().last_error == "process 1 has given no sign of life"


def test_an_error_is_raised_also_where_the_status_cannot_be_written(run, monkeypatch):
    ending = Ending(run, Process())
    with pytest.raises(RuntimeError, match="first"), ending.awaited():
        monkeypatch.setattr(RunFolder, "set_status", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        raise RuntimeError("first")


def test_one_of_several_that_ctrl_c_has_ended_waits_for_no_other(run):
    with pytest.raises(KeyboardInterrupt):
        end(run, KeyboardInterrupt(), count=2)
    assert run.status().state == "stopped"
    assert end(run, KeyboardInterrupt()).state == "stopped"  # one alone


def test_a_process_beside_the_main_one_writes_no_status(run):
    end(run, is_main=False, count=2)
    assert run.status().state == "queued"
