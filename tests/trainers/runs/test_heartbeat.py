"""The sign of life: a suspended process hangs, a long step does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
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

# One step that takes as long as the test: no status is written meanwhile.
WORKER = """
import sys, time
from trainers.runs.folder import RunFolder
from trainers.runs.heartbeat import heartbeat
run = RunFolder(sys.argv[1])
with heartbeat(run, every=0.05):
    run.set_status(state="running", iteration=1)
    print("runs", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path, make_config("tiny"), "a")


@pytest.fixture
def worker(run, repository):
    child = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(run.path)], cwd=repository, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "runs\n"
    wait_for(lambda: (run.path / module.FILE).exists())
    yield child
    child.kill()
    child.communicate()


def wait_for(come) -> None:
    until = time.monotonic() + 30
    while not come():
        assert time.monotonic() < until
        time.sleep(0.02)


def write(run: RunFolder, missed: float, quiet: float, pid: int | None = None) -> None:
    """The last beat of a process, `missed` seconds old."""
    pid = pid or os.getpid()
    values = {"pid": pid, "started": start_token(pid), "beat": time.monotonic() - missed, "quiet": quiet}
    (run.path / module.FILE).write_text(json.dumps(values))


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
    def quiet() -> float:
        return json.loads((run.path / module.FILE).read_text())["quiet"]

    with heartbeat(run, every=0.02):
        wait_for(lambda: (run.path / module.FILE).exists() and quiet() > 0.2)
        run.set_status(message="a step")
        wait_for(lambda: quiet() < 0.15)
    assert not (run.path / module.FILE).exists()


def test_a_deleted_run_does_not_end_the_thread(run):
    with heartbeat(run, every=0.01):
        run.path.rename(run.path.with_name("elsewhere"))
        time.sleep(0.1)
