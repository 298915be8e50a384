"""Waiting for a device, by processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainers.config import make_config
from trainers.errors import UserError
from trainers.processes import alive
from trainers.runs import launcher, starting
from trainers.runs.claims import claims, enter, leave, move
from trainers.runs.devices import DeviceBusy, hold_device
from trainers.runs.folder import RunFolder
from trainers.runs.registry import is_alive, refresh
from trainers.runs.summary import sentence

# Waits for its turn as `work` does, and keeps the devices until its stdin is closed.
WAITER = """
import sys
from trainers.runs import queue
from trainers.runs.folder import RunFolder
queue.POLL_SECONDS = 0.05
with queue.wait_turn(RunFolder(sys.argv[1]), sys.argv[2:]) as turn:
    print("turn" if turn else "stopped", flush=True)
    turn and sys.stdin.read()
"""
# Queues a run and dies: a server that is killed.
STARTER = """
import os, signal, sys
from pathlib import Path
from trainers.runs import starting
from trainers.runs.folder import RunFolder
starting.resume(Path(sys.argv[1]).parent, RunFolder(sys.argv[1]), wait=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
SMALL = {
    "iterations": 1,
    "video": {"height": 16, "width": 16, "frames": 5},
    "rollout": {
        "steps": 3,
        "group_size": 2,
        "groups_per_update": 2,
        "window": {"kind": "random", "size": 1, "last": 2},
    },
    "lora": {"rank": 2, "alpha": 2},
    "evaluation": {"items": 2, "steps": 2},
}


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def make(tmp_path):
    return lambda name="a", root="runs": RunFolder.create(tmp_path / root, make_config("tiny"), name)


@pytest.fixture
def enqueue(repository, default_signals):
    """`enqueue(run, *devices)`: a process that waits for them; it is in the queue when this returns."""
    children = []

    def start(run: RunFolder, *devices: str) -> subprocess.Popen:
        children.append(
            subprocess.Popen(
                [sys.executable, "-c", WAITER, str(run.path), *(devices or ("cpu",))],
                cwd=repository,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        wait_for(lambda: run.status().place or run.status().state == "starting")
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.communicate()


def wait_for(come, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not come():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_runs_get_the_device_in_the_order_in_which_they_came(make, enqueue):
    first, second = make("first"), make("second", root="other runs")
    with hold_device("cpu", Path("a-run-that-trains")):
        one, two = enqueue(first), enqueue(second)
        assert [refresh(run).state for run in (first, second)] == ["queued", "queued"]
        assert "waits for the CPU, place 1 in the queue; run a-run-that-trains has it" in first.status().message
        assert sentence(second) == f"{second.id}: queued, place 2" and is_alive(second)
    assert one.stdout.readline() == "turn\n"
    wait_for(lambda: second.status().place == 1)
    assert first.status().state == "starting" and f"run {first.id} has it" in second.status().message
    one.communicate()
    assert two.stdout.readline() == "turn\n"


def test_a_run_that_needs_another_device_does_not_wait(make, enqueue):
    with hold_device("cuda-a", Path("x")):
        enqueue(make("behind"), "cuda-a")
        assert enqueue(make("beside"), "cuda-b").stdout.readline() == "turn\n"


def test_several_devices_are_taken_together_or_not_at_all(make, enqueue):
    with hold_device("cuda-b", Path("x")):
        child = enqueue(run := make(), "cuda-a", "cuda-b")
        with hold_device("cuda-a", Path("y")):  # it does not keep the one while it waits for the other
            assert run.status().state == "queued"
    assert child.stdout.readline() == "turn\n"
    with pytest.raises(DeviceBusy, match=run.id), hold_device("cuda-a", Path("y")):
        pass


def test_stop_takes_a_run_out_of_the_queue(make, enqueue):
    first, second = make("first"), make("second")
    with hold_device("cpu", Path("x")):
        one = enqueue(first)
        enqueue(second)
        assert launcher.stop(first, wait=20) == "stopped"
        assert (
            one.stdout.readline() == "stopped\n" and first.status().message == "stopped while it waited for its device"
        )
        wait_for(lambda: second.status().place == 1)


def test_a_run_that_is_moved_up_gets_its_turn_earlier(make, enqueue):
    first, second, third = (make(name) for name in ("first", "second", "third"))
    with hold_device("cpu", Path("x")):
        for run in (first, second):
            enqueue(run)
        child = enqueue(third)
        assert [move(third.path, "up"), move(third.path, "up"), move(third.path, "up")] == [2, 1, 1]
        wait_for(lambda: [run.status().place for run in (third, first, second)] == [1, 2, 3])
    assert child.stdout.readline() == "turn\n"


def queued(*devices: str) -> list[str]:
    return [claim.run.name for claim in claims(devices)]


def test_a_run_that_comes_later_is_behind_those_that_were_moved(make):
    first, second, third = (make(name).path for name in ("first", "second", "third"))
    for run in (first, second):
        enter(run, ["cpu"])
    assert move(first, "last") == 2
    enter(third, ["cpu"])
    assert queued("cpu") == [second.name, first.name, third.name]
    assert move(third, "first") == 1 and queued("cpu") == [third.name, second.name, first.name]


def test_a_move_counts_the_runs_of_the_same_device(make):
    one, other, behind = (make(name).path for name in ("one", "other", "behind"))
    for run, device in ((one, "cuda-a"), (other, "cuda-b"), (behind, "cuda-a")):
        enter(run, [device])
    assert move(one, "down") == 2 and move(other, "first") == 1
    assert queued("cuda-a") == [behind.name, one.name] and queued("cuda-b") == [other.name]


def test_the_place_of_a_claim_that_left_is_not_inherited(make):
    first, second, third = (make(name).path for name in ("first", "second", "third"))
    enter(first, ["cpu"])
    claim = enter(second, ["cpu"])
    move(second, "first")
    leave(claim)
    enter(third, ["cpu"])
    assert queued("cpu") == [first.name, third.name]


def test_only_a_waiting_run_is_moved(make):
    with pytest.raises(UserError, match="does not wait in the queue"):
        move(make().path, "up")
    with pytest.raises(UserError, match="cannot be moved `sideways`"):
        move(make().path, "sideways")


def test_a_suspended_run_holds_up_no_other(make, enqueue):
    first, second = make("first"), make("second")
    with hold_device("cpu", Path("x")):
        one, two = enqueue(first), enqueue(second)
        one.send_signal(signal.SIGSTOP)
        wait_for(lambda: refresh(first).state == "hung")
    assert two.stdout.readline() == "turn\n"
    one.send_signal(signal.SIGCONT)
    wait_for(lambda: refresh(first).state == "queued" and f"run {second.id} has it" in first.status().message)


def test_ctrl_c_takes_a_run_out_of_the_queue(make, enqueue):
    with hold_device("cpu", Path("x")):
        child = enqueue(run := make())
        child.send_signal(signal.SIGINT)
        child.wait(20)
    assert refresh(run).state == "stopped" and claims(["cpu"]) == []


def test_a_killed_run_loses_its_place_and_failed(make, enqueue):
    first, second = make("first"), make("second")
    with hold_device("cpu", Path("x")):
        enqueue(first).kill()
        enqueue(second)
        wait_for(lambda: second.status().place == 1)
        wait_for(lambda: refresh(first).state == "failed")


def test_a_run_that_does_not_wait_is_not_started_before_those_that_do(make, enqueue, tmp_path):
    with hold_device("cuda-a", Path("x")):
        enqueue(run := make(), "cpu", "cuda-a")
        with pytest.raises(UserError, match=f"run {run.id} waits for the CPU and is next"):
            starting.devices_for(tmp_path / "elsewhere", "cpu")


def test_a_run_that_is_just_starting_is_not_overtaken(make, enqueue):
    before = make("before")
    before.set_status(state="starting", gpus=[])
    child = enqueue(run := make())
    assert run.status().place == 1
    before.set_status(state="stopped")
    assert child.stdout.readline() == "turn\n"


def test_a_queued_run_outlives_its_starter_and_trains_when_the_device_is_free(repository, tmp_path, small_models):
    """Slow because it trains: the whole way from a killed server to the LoRA."""
    run = RunFolder.create(tmp_path / "runs", make_config("tiny", SMALL | small_models))
    with hold_device("cpu", Path("x")):
        line = [sys.executable, "-c", STARTER, str(run.path)]
        assert subprocess.run(line, cwd=repository, check=False).returncode == -signal.SIGKILL
        wait_for(lambda: refresh(run).place == 1)
        status = run.status()
        assert alive(status.pid, status.pid_started) and os.getsid(status.pid) == status.pid
        with pytest.raises(UserError, match=f"run {run.id} is queued already"):
            starting.resume(tmp_path / "runs", run, wait=True)
    wait_for(lambda: not is_alive(run), 200)
    assert run.status().state == "finished" and run.newest(), run.log_tail(40)


def test_several_processes_train_at_their_turn(tmp_path, small_models):
    """Slow because it trains: the process that waited starts the others, and holds the device for them."""
    run = RunFolder.create(tmp_path / "runs", make_config("tiny", SMALL | small_models))
    child = launcher.start(run, processes=2, wait=["cpu"])
    wait_for(lambda: refresh(run).state == "running" or child.poll() is not None, 120)
    with pytest.raises(DeviceBusy, match=run.id), hold_device("cpu", Path("y")):
        pass
    assert child.wait(200) == 0, run.log_tail(40)
    assert run.status().state == "finished"
    assert [row["iteration"] for row in run.training()] == [1]  # of two processes, one run
