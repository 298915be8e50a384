"""A command in several processes: its one exit status and its one error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import pytest

from trainers.cli import main
from trainers.commands import several
from trainers.commands.several import as_one_of_several, start_again
from trainers.errors import UserError
from trainers.runs.process_group import Failure


@pytest.fixture
def started(monkeypatch) -> Callable:
    """`started(*works, failure)`: what a command ends with whose processes do this work, one after the other."""

    def started(*works: Callable[[], int], failure: Failure | None = None) -> int:
        def run_processes(command, count, machines, environment, log):
            for rank, work in enumerate(works):
                with pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
                    patch.setitem(os.environ, several.FOLDER, environment[several.FOLDER])
                    patch.setitem(os.environ, "RANK", str(rank))
                    log(rank).write_text(f"output of {rank}\n")
                    as_one_of_several(work)
            return failure

        monkeypatch.setattr(several, "run_processes", run_processes)
        return start_again(len(works), True, "try again")

    return started


def raising(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


def test_it_is_the_same_command_line_in_every_process(monkeypatch):
    found = {}

    def run_processes(command, count, machines, environment, log):
        found.update(locals())

    monkeypatch.setattr(several, "run_processes", run_processes)
    monkeypatch.setattr("sys.argv", ["identity-grpo", "bench", "--processes", "2"])
    with pytest.raises(KeyboardInterrupt):  # it has not ended
        start_again(2, True)
    assert found["command"][1:] == ["-m", "trainers", "bench", "--processes", "2"]
    assert (found["count"], found["machines"].count, found["environment"]["CUDA_VISIBLE_DEVICES"]) == (2, 1, "")


def test_the_first_error_of_all_processes_is_the_command_s(started):
    works = raising(UserError("the clip is broken")), raising(RuntimeError("connection closed by peer"))
    with pytest.raises(UserError, match="^the clip is broken$"):
        started(*works, failure=Failure(1, 2, 1))


def test_an_error_that_is_no_user_s_comes_with_its_traceback(started):
    with pytest.raises(UserError, match=r"(?s)Traceback.*in work.*ZeroDivisionError: by nought"):
        started(raising(ZeroDivisionError("by nought")), lambda: 0, failure=Failure(0, 2, 1))


def test_a_process_that_was_killed_is_the_cause_of_what_others_report(started):
    with pytest.raises(UserError, match=r"(?s)process 1 of 2.* was killed by SIGKILL.*; try again; .*\noutput of 1$"):
        started(raising(RuntimeError("connection closed")), lambda: 0, failure=Failure(1, 2, -9))


@pytest.mark.parametrize("failure", [Failure(0, 2, 1), Failure(1, 2, -11)], ids=["as the status says", "at its exit"])
def test_the_status_is_that_of_process_0_once_it_has_done_its_work(started, failure):
    assert started(lambda: 1, lambda: 0, failure=failure) == 1


def test_a_stop_is_no_error(started):
    with pytest.raises(KeyboardInterrupt):
        started(raising(KeyboardInterrupt()), raising(KeyboardInterrupt()))


def test_a_process_that_was_started_by_itself_raises_its_own_error(monkeypatch):
    monkeypatch.delenv(several.FOLDER, raising=False)
    with pytest.raises(UserError, match="the clip is broken"):
        as_one_of_several(raising(UserError("the clip is broken")))


def test_the_benchmark_shows_the_memory_of_every_process(monkeypatch, capfd):
    words = ["bench", "--device", "cpu", "--processes", "2", "--phases", "text", "--repeats", "1"]
    monkeypatch.setattr("sys.argv", ["identity-grpo", *words])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(words) == 0
    (row,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("| encode text")]
    assert len([cell for cell in row.split("|") if ", " in cell]) == 1
