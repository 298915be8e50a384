"""Runs of several processes and machines, all on this computer: the same run, also when one of them dies."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from trainers.config import make_config
from trainers.runs.folder import RunFolder
from trainers.runs.launcher import start, stop
from trainers.runs.machines import Machines
from trainers.runs.registry import refresh

from .test_faults import LONG, SMALL

long = pytest.mark.skipif(LONG not in os.environ, reason=f"starts dozens of processes; set {LONG}=1 to run it")
FAILED_WITHIN = 60.0  # seconds
FLOAT_ERROR = 2e-5
CHANGES = {"iterations": 3, "rollout": SMALL["rollout"] | {"groups_per_update": 4}}


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def make(tmp_path, small_models):
    """`make(**changes)`: a run; what is left of its processes is ended with the test."""
    made = []

    def create(root: Path | None = None, **changes) -> RunFolder:
        config = make_config("tiny", SMALL | small_models | CHANGES | changes)
        made.append(RunFolder.create(root or tmp_path / "runs", config))
        return made[-1]

    yield create
    for run in made:
        stop(run, wait=0)


def process(run: RunFolder, child: subprocess.Popen, rank: int) -> psutil.Process:
    """One of the processes that the child has started."""
    for found in psutil.Process(child.pid).children():
        if found.environ().get("RANK") == str(rank):
            return found
    raise AssertionError(run.log_tail())


def reaches(run: RunFolder, iteration: int, phase: str = "") -> None:
    until = time.monotonic() + 200
    while True:
        status = run.status()
        if status.state == "running" and status.iteration >= iteration and phase in ("", status.phase):
            return
        assert status.state not in ("finished", "failed") and time.monotonic() < until, run.log_tail()
        time.sleep(0.005)


def kill_in(run: RunFolder, child: subprocess.Popen, rank: int, iteration: int, phase: str = "") -> str:
    """Kill that process there; returns the reason of the run that has failed within a minute."""
    reaches(run, 0)
    victim = process(run, child, rank)
    reaches(run, iteration, phase)
    victim.send_signal(signal.SIGKILL)
    fault = time.monotonic()
    while child.poll() is None:
        assert time.monotonic() - fault < FAILED_WITHIN
        time.sleep(0.05)
    assert refresh(run).state == "failed"
    return run.status().last_error


def numbers(run: RunFolder) -> dict[str, float]:
    rows = [row for row in run.read_metrics() if row["kind"] == "train"]
    return {f"{row['iteration']} {name}": row[name] for row in rows for name in ("reward_mean", "grad_norm")}


def require_same(run: RunFolder, expected: RunFolder) -> None:
    assert run.status().state == "finished", run.log_tail(40)
    assert numbers(run) == pytest.approx(numbers(expected), rel=1e-2, abs=1e-4)
    loras = [load_file(one.checkpoints()[-1] / "lora.safetensors") for one in (run, expected)]
    assert max((loras[0][name] - loras[1][name]).abs().max().item() for name in loras[0]) < FLOAT_ERROR


def test_a_process_that_dies_ends_the_run_with_its_reason_and_one_alone_continues_it(make):
    run = make(iterations=2)
    child = start(run, processes=2)
    # The second iteration: the checkpoint of the first is complete.
    reason = kill_in(run, child, 1, 1, "rollouts")
    assert reason.startswith("process 1 of 2, counted from 0, was killed by SIGKILL")
    saved = int(run.checkpoints()[-1].name)
    assert start(run, resume=True).wait(200) == 0, run.log_tail(40)
    assert run.status().state == "finished"
    trained = [row["iteration"] for row in run.read_metrics() if row["kind"] == "train"]
    assert saved >= 1 and trained == [1, 2]


# --- the long version ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory, small_models) -> RunFolder:
    """The run on one process that nothing disturbs."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        run = RunFolder.create(folder / "runs", make_config("tiny", SMALL | small_models | CHANGES))
        assert start(run).wait(200) == 0, run.log_tail(40)
    return run


@long
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_any_number_of_processes_gives_the_same_run(make, alone, processes):
    run = make()
    assert start(run, processes=processes).wait(400) == 0, run.log_tail(40)
    require_same(run, alone)


@long
@pytest.mark.parametrize(
    "rank, iteration, phase, processes, then",
    [(1, 1, "rollouts", 2, 1), (0, 1, "update", 2, 3), (1, 2, "evaluation", 2, 1), (1, 1, "saving", 3, 2)],
)
def test_a_process_killed_in_any_phase_fails_the_run_which_resumes_on_another_number(
    make, alone, rank, iteration, phase, processes, then
):
    run = make()
    reason = kill_in(run, start(run, processes=processes), rank, iteration, phase)
    assert f"process {rank} of {processes}, counted from 0, was killed by SIGKILL" in reason
    assert start(run, resume=True, processes=then).wait(400) == 0, run.log_tail(40)
    require_same(run, alone)


def join(runs: Path, port: int, locks: Path, processes: int = 2) -> subprocess.Popen:
    """Machine 1 of 2, on this computer: its locks are its own."""
    locks.mkdir(exist_ok=True)
    options = ["--machines", "2", "--machine-rank", "1", "--rendezvous", f"127.0.0.1:{port}"]
    return subprocess.Popen(
        [sys.executable, "-m", "trainers", "train", *options, "--processes", str(processes), "--runs", str(runs)],
        env=os.environ | {"TMPDIR": str(locks)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@long
@pytest.mark.parametrize("shared", [True, False], ids=["shared disk", "own disks"])
def test_two_machines_of_two_processes_give_the_same_run(make, alone, tmp_path, shared):
    run, port = make(), free_port()
    runs = run.path.parent if shared else tmp_path / "other machine"
    other = join(runs, port, tmp_path / "locks")
    assert start(run, processes=2, machines=Machines(2, 0, f"127.0.0.1:{port}")).wait(400) == 0, run.log_tail(40)
    assert other.wait(60) == 0, other.stdout.read()
    require_same(run, alone)
    copy = RunFolder(runs / run.id)
    assert copy.status().state == "finished" and all(copy.rank_log(rank).is_file() for rank in (2, 3))
    assert bool(copy.checkpoints()) is shared


@long
def test_a_machine_that_dies_fails_the_run_which_continues_from_the_disk_of_the_first(make, alone, tmp_path):
    """All its processes are killed at once, its launcher too: nobody there can say so."""
    run, port = make(), free_port()
    other = join(tmp_path / "other machine", port, tmp_path / "locks", 1)
    child = start(run, processes=1, machines=Machines(2, 0, f"127.0.0.1:{port}"))
    reaches(run, 1)
    for victim in (*psutil.Process(other.pid).children(recursive=True), psutil.Process(other.pid)):
        victim.kill()
    child.wait(FAILED_WITHIN)
    assert refresh(run).state == "failed" and run.status().last_error
    port = free_port()
    other = join(tmp_path / "other machine", port, tmp_path / "locks", 1)
    again = start(run, resume=True, processes=1, machines=Machines(2, 0, f"127.0.0.1:{port}"))
    assert again.wait(400) == 0, run.log_tail(40)
    assert other.wait(60) == 0, other.stdout.read()
    require_same(run, alone)
