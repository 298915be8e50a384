"""The sign of life: a suspended process hangs, a long step does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from trainers.config import make_config
from trainers.processes import start_token
from trainers.runs import heartbeat as module
from trainers.runs import launcher
from trainers.runs.folder import RunFolder
from trainers.runs.heartbeat import heartbeat, silence
from trainers.runs.registry import is_alive, refresh
from trainers.runs.summary import summary

# A training process without training: `{step}` is what its main thread does as long as the test takes.
WORKER = """
import re, sys, time
from trainers.runs.folder import RunFolder
from trainers.runs.heartbeat import at_work, heartbeat
run = RunFolder(sys.argv[1])
with heartbeat(run, every=0.05):
    run.set_status(state="running", iteration=1)
    time.sleep(0.2)
    print("runs", flush=True)
    {step}
"""
CALL = "time.sleep(600)"
CALL_WITHOUT_PYTHON = "re.match('(a+)+$', 'a' * 60 + 'b')"  # holds the interpreter's lock: no thread runs beside it
STEPS = "while True: time.sleep(0.01), at_work()"


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path, make_config("tiny"), "a")


@pytest.fixture
def work(run, repository):
    """`work(step)`: a process of the run that does this, and beats."""
    children = []

    def start(step: str) -> subprocess.Popen:
        line = [sys.executable, "-c", WORKER.format(step=step), str(run.path)]
        children.append(subprocess.Popen(line, cwd=repository, stdout=subprocess.PIPE, text=True))
        assert children[-1].stdout.readline() == "runs\n"
        wait_for(lambda: (run.path / module.FILE).exists())
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.communicate()


@pytest.fixture
def worker(work):
    return work(CALL)


def wait_for(come) -> None:
    until = time.monotonic() + 30
    while not come():
        assert time.monotonic() < until
        time.sleep(0.02)


def write(
    run: RunFolder, missed: float, quiet: float, still: float = 0.0, longest: float = 0.0, pid: int | None = None
) -> None:
    """The last beat of a process, `missed` seconds old."""
    pid = pid or os.getpid()
    values = module.Beat(pid, start_token(pid), time.monotonic() - missed, quiet, still, longest, [])
    (run.path / module.FILE).write_text(json.dumps(vars(values)))


def last_beat(run: RunFolder) -> module.Beat:
    return module.Beat(**json.loads((run.path / module.FILE).read_text()))


def test_a_suspended_process_hangs_at_once_until_it_continues(run, worker):
    assert refresh(run).state == "running"
    worker.send_signal(signal.SIGSTOP)
    wait_for(lambda: refresh(run).state == "hung")
    assert is_alive(run) and run.status().state == "running"
    assert f"`kill -CONT {worker.pid}` continues it" in summary(run) and ": hung, iteration 1" in summary(run)
    worker.send_signal(signal.SIGCONT)
    wait_for(lambda: refresh(run).state == "running")


def test_a_hung_run_is_stopped_by_force_without_the_whole_wait(run, worker, monkeypatch):
    monkeypatch.setattr(module, "MISSED_SECONDS", -1.0)
    monkeypatch.setattr(launcher, "HUNG_SECONDS", 0.1)
    assert refresh(run).state == "hung" and "no sign of life" in summary(run)
    assert launcher.stop(run, wait=600) == "stopped"
    assert worker.wait(5) == -signal.SIGKILL and "by force" in run.status().message


def test_the_sign_is_due_within_a_minute(run):
    run.set_status(state="running")
    write(run, missed=31, quiet=0)
    assert refresh(run).state == "hung"


def test_a_long_step_of_a_process_that_beats_is_no_hang(run):
    run.set_status(state="running", slowest_seconds=4000.0)
    write(run, missed=1, quiet=3600)
    assert refresh(run).state == "running"


def test_a_status_older_than_the_longest_iteration_is_a_hang(run):
    run.set_status(state="running", slowest_seconds=3000.0)
    write(run, missed=1, quiet=3600)
    assert refresh(run).state == "hung"


def test_short_iterations_give_no_false_alarm(run):
    run.set_status(state="running", slowest_seconds=0.5)
    write(run, missed=1, quiet=50)
    assert refresh(run).state == "running"


def test_before_the_first_iteration_only_beats_are_known(run):
    run.set_status(state="starting")
    write(run, missed=1, quiet=3600)
    assert refresh(run).state == "starting"


def test_the_beat_of_another_process_says_nothing(run):
    run.set_status(state="running")
    write(run, missed=3600, quiet=0, pid=os.getpid() + 1)
    assert silence(run, run.status()) is None


def test_the_beat_of_an_earlier_process_with_the_same_pid_says_nothing(run):
    run.set_status(state="running")
    write(run, missed=3600, quiet=0)
    run.set_status(pid=os.getpid(), pid_started=None)
    assert silence(run, run.status()) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pid": 1, "beat": null, "quiet": 0}'])
def test_a_damaged_beat_says_nothing(run, content):
    run.set_status(state="running")
    (run.path / module.FILE).write_text(content)
    assert refresh(run).state == "running"


def test_a_run_at_rest_never_hangs(run):
    run.set_status(state="running")
    run.set_status(state="stopped")
    write(run, missed=3600, quiet=0)
    assert refresh(run).state == "stopped"


def test_the_beat_counts_from_the_last_status_and_ends_with_its_block(run):
    with heartbeat(run, every=0.02):
        wait_for(lambda: (run.path / module.FILE).exists() and last_beat(run).quiet > 0.2)
        run.set_status(message="a step")
        wait_for(lambda: last_beat(run).quiet < 0.15)
    assert not (run.path / module.FILE).exists()


def test_a_deleted_run_does_not_end_the_thread(run):
    with heartbeat(run, every=0.01):
        run.path.rename(run.path.with_name("elsewhere"))
        time.sleep(0.1)


# --- a main thread that gets no further ------------------------------------------------------------------------------


def test_a_call_that_never_returns_hangs_though_the_heart_beats(run, work, monkeypatch):
    work(CALL)
    monkeypatch.setattr(module, "STILL_SECONDS", 0.3)
    wait_for(lambda: refresh(run).state == "hung")
    assert "has been at the same place of its code for" in summary(run)


def test_a_call_that_lets_no_thread_run_hangs_too(run, work, monkeypatch):
    work(CALL_WITHOUT_PYTHON)
    monkeypatch.setattr(module, "MISSED_SECONDS", 0.5)
    wait_for(lambda: refresh(run).state == "hung")
    assert "has given no sign of life for" in summary(run)


def test_a_loop_that_notes_its_steps_is_at_work(run, work):
    work(STEPS)
    wait_for(lambda: last_beat(run).quiet > 0.5)
    assert last_beat(run).still < 0.25


def test_a_run_at_one_place_for_most_of_a_minute_hangs_before_its_first_iteration_too(run):
    run.set_status(state="running")
    write(run, missed=1, quiet=50, still=46)
    assert refresh(run).state == "hung"


def test_a_call_as_long_as_others_before_is_no_hang(run):
    run.set_status(state="running")
    write(run, missed=1, quiet=50, still=170, longest=90)
    assert refresh(run).state == "running"


def test_the_longest_call_is_remembered(run):
    with heartbeat(run, every=0.02):
        time.sleep(0.3)
        wait_for(lambda: last_beat(run).longest > 0.15)


def test_a_process_that_waits_for_another_is_at_work(run):
    ended = threading.Event()

    def other() -> None:
        while not ended.wait(0.02):
            (run.path / module.OTHERS.replace("*", "1")).write_text(json.dumps(time.monotonic()))

    thread = threading.Thread(target=other)
    with heartbeat(run, every=0.02):
        thread.start()
        time.sleep(0.6)
        found = last_beat(run)
        ended.set()
        thread.join()
    assert found.still < found.quiet / 2


def test_what_killed_processes_left_counts_for_nothing(run):
    left = run.path / module.OTHERS.replace("*", "1")
    left.write_text(json.dumps(time.monotonic() + 1e6))
    with heartbeat(run):
        assert not left.exists()


def test_the_processes_beside_the_main_one_write_files_of_their_own(run):
    with heartbeat(run, every=0.02, rank=3):
        wait_for(lambda: list(module._others(run.path)))
        assert not (run.path / module.FILE).exists()
    assert not list(module._others(run.path))
