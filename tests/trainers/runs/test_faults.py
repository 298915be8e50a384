"""Faults of real processes: afterwards the state is true within ten seconds, nothing is lost, and a resumed run has the
numbers of one that was never interrupted.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from trainers.config import make_config
from trainers.errors import UserError
from trainers.processes import alive
from trainers.runs import launcher, starting
from trainers.runs.devices import hold_device, hold_runs
from trainers.runs.folder import RunFolder
from trainers.runs.registry import refresh
from trainers.runs.requests import save_now
from trainers.runs.status import RunStatus

from .forked_runs import Forks

LONG = "IDENTITY_GRPO_FAULTS"
long = pytest.mark.skipif(LONG not in os.environ, reason=f"interrupts training for minutes; set {LONG}=1 to run it")
TRUE_WITHIN = 10.0  # seconds
KILLS = 10
SMALL = {
    "iterations": 3,
    "video": {"height": 32, "width": 32, "frames": 5},
    "rollout": {
        "steps": 3,
        "group_size": 2,
        "groups_per_update": 2,
        "window": {"kind": "random", "size": 1, "last": 2},
    },
    "lora": {"rank": 2, "alpha": 2},
    "evaluation": {"items": 1, "steps": 2, "every": 2},
}
MEASURED = ("seconds_", "gpu_")
LINES: list[str] = []


@pytest.fixture(autouse=True)
def own_locks(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("locks")))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module", autouse=True)
def table(request) -> Iterator[list[str]]:
    """Lines about each fault, which the long version prints."""
    LINES.clear()
    yield LINES
    if LONG in os.environ:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print("\n" + "\n".join(LINES))


@pytest.fixture(scope="module")
def forks(repository, tmp_path_factory) -> Iterator[Forks]:
    found = Forks(repository)
    yield found
    found.close()


@pytest.fixture
def make(tmp_path, small_models) -> Iterator[Callable[..., RunFolder]]:
    """`make(**changes)`: a run; its process is killed when the test ends."""
    made = []

    def create(**changes) -> RunFolder:
        made.append(RunFolder.create(tmp_path / "runs", make_config("tiny", SMALL | small_models | changes)))
        return made[-1]

    yield create
    for run in made:
        kill(run)


@pytest.fixture(scope="module")
def expected(forks, small_models, tmp_path_factory) -> dict:
    """The numbers of a run that nothing interrupts."""
    run = RunFolder.create(tmp_path_factory.mktemp("runs"), make_config("tiny", SMALL | small_models))
    ends(run, forks.start(run))
    return numbers(run)


def ends(run: RunFolder, pid: int) -> None:
    """Wait until the process has exited; the run has finished."""
    until = time.monotonic() + 200
    while psutil.pid_exists(pid):
        assert time.monotonic() < until, run.log_tail()
        refresh(run)  # collects a child that has ended
        time.sleep(0.05)
    assert refresh(run).state == "finished", run.log_tail()


def numbers(run: RunFolder) -> dict:
    """What the run measured, and its last LoRA."""
    rows = [{k: v for k, v in row.items() if not k.startswith(MEASURED)} for row in run.read_metrics()]
    return {"rows": rows, "lora": {k: v.tolist() for k, v in load_file(run.newest().path).items()}}


def reaches(run: RunFolder, iteration: int, phase: str) -> RunStatus:
    """Wait until the run is there."""
    until = time.monotonic() + 200
    while True:
        status = run.status()
        if (status.iteration, status.phase) == (iteration, phase) and status.state == "running":
            return status
        assert time.monotonic() < until and status.state not in ("finished", "failed"), run.log_tail()
        time.sleep(0.002)


def becomes(run: RunFolder, *states: str) -> RunStatus:
    """The status, which is one of these within ten seconds."""
    fault = time.monotonic()
    while (status := refresh(run)).state not in states:
        assert time.monotonic() - fault < TRUE_WITHIN, status
        time.sleep(0.05)
    test = os.environ["PYTEST_CURRENT_TEST"].partition("::")[2].partition(" ")[0]
    LINES.append(f"{test:95} | {status.state} after {time.monotonic() - fault:.2f} s")
    return status


def kill(run: RunFolder) -> None:
    status = run.status()
    if status.active and status.pid != os.getpid() and alive(status.pid, status.pid_started):
        os.killpg(status.group or status.pid, signal.SIGKILL)
        while alive(status.pid, status.pid_started):
            time.sleep(0.01)


# --- killed and suspended --------------------------------------------------------------------------------------------


@long
@pytest.mark.parametrize(
    "iteration, phase",
    [(0, "evaluation"), (0, "saving"), (1, "update"), (2, "evaluation")],
)
def test_a_killed_run_continues_with_the_same_numbers(forks, make, expected, iteration, phase):
    run = make()
    run.rename("mine")
    forks.start(run)
    reaches(run, iteration, phase)
    kill(run)
    assert "has exited" in becomes(run, "failed").last_error
    with hold_device("cpu", Path("the device is free")):
        pass
    ends(run, forks.start(run, resume=True))
    assert numbers(run) == expected and run.title == "mine"


def test_a_suspended_run_is_hung_at_once_and_saves_when_it_is_stopped(forks, make):
    run = make(iterations=500, checkpoint={"every": 1000}, evaluation=SMALL["evaluation"] | {"every": 1000})
    pid = forks.start(run)
    reaches(run, 1, "rollouts")
    os.kill(pid, signal.SIGSTOP)
    assert "is suspended" in becomes(run, "hung").message
    assert launcher.stop(run) == "stopped"
    assert "force" not in run.status().message and int(run.checkpoints()[-1].name) >= 1


def test_a_number_that_another_process_has_now_does_not_keep_a_run_alive(forks, make):
    run = make()
    pid = forks.start(run)
    becomes(run, "starting", "running")
    kill(run)
    until = time.monotonic() + TRUE_WITHIN
    while psutil.pid_exists(pid):
        assert time.monotonic() < until
        time.sleep(0.01)
    other = with_pid(pid)
    try:
        assert becomes(run, "failed").pid == pid and psutil.pid_exists(pid)
        assert launcher.stop(run) == "failed" and other.poll() is None
    finally:
        other.kill()
        other.wait()


def with_pid(pid: int) -> subprocess.Popen:
    """A process with this number, which the system gives out again."""
    for _ in range(50):
        try:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        except OSError as error:
            pytest.skip(f"this system does not let a test choose a pid ({error})")
        child = subprocess.Popen(["sleep", "600"])
        if child.pid == pid:
            return child
        child.kill()
        child.wait()
    pytest.skip("other processes took the pid")


# --- what is on the disk ---------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_reported_at_once_and_the_one_before_is_taken(forks, make):
    """What follows from that one: tests/trainers/grpo/test_trainer.py."""
    run = make(iterations=500)
    forks.start(run)
    reaches(run, 2, "evaluation")
    kill(run)
    damaged = run.checkpoints()[-1]
    file = damaged / "lora.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    forks.start(run, resume=True)
    status = reaches(run, int(damaged.name) - 1, "rollouts")
    assert f"{damaged.name} is damaged: lora.safetensors is not what was written" in status.message
    assert f"Resumed from iteration {int(damaged.name) - 1}" in status.message
    assert damaged.with_name(f"{damaged.name}.damaged").is_dir() and "is damaged" in run.log_tail()


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 8 MiB at `folder`."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False) if sys.platform == "linux" else None
    if done is None or done.returncode:
        pytest.skip("this user cannot mount a small disk to fill")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@long
def test_a_full_disk_ends_a_run_which_continues_when_there_is_room(forks, make, expected, tmp_path):
    with small_disk(tmp_path / "runs"):
        run = make()
        forks.start(run)
        reaches(run, 1, "rollouts")
        filler = run.path.parent / "filler"
        with contextlib.suppress(OSError), open(filler, "wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        status = run.status()
        assert "the disk is full" in becomes(run, "failed").last_error
        until = time.monotonic() + TRUE_WITHIN
        while alive(status.pid, status.pid_started):
            assert time.monotonic() < until
            time.sleep(0.05)
        filler.unlink()
        assert becomes(run, "failed") and run.status().state == "failed"
        ends(run, forks.start(run, resume=True))
        assert numbers(run) == expected


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that every user can read: pytest's are its user's alone."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@long
def test_a_folder_that_cannot_be_written_any_more_ends_a_run(forks, expected, small_models, open_folder):
    run = RunFolder.create(open_folder, make_config("tiny", SMALL | small_models))
    pid = forks.start(run)
    reaches(run, 1, "rollouts")
    if os.geteuid():
        run.path.chmod(0o555)
    else:
        os.kill(pid, signal.SIGUSR1)  # root writes everywhere
    try:
        assert "Permission denied" in becomes(run, "failed").last_error
    finally:
        run.path.chmod(0o755)
    ends(run, forks.start(run, resume=True))
    assert numbers(run) == expected


# --- clocks and servers ----------------------------------------------------------------------------------------------


@long
def test_a_clock_that_jumps_changes_nothing(forks, make, expected, tmp_path):
    run, clock = make(), tmp_path / "clock"
    clock.write_text("0")
    pid = forks.start(run, clock=clock)
    for iteration, shift in ((1, 3e7), (2, -3e7)):
        reaches(run, iteration, "rollouts")
        clock.write_text(str(shift))
        time.sleep(0.3)
        assert refresh(run).state == "running"
    ends(run, pid)
    assert numbers(run) == expected


def test_a_run_that_another_server_starts_just_now_is_not_reported_as_dead(make):
    run = make()
    run.set_status(state="running", pid=os.getpid(), pid_started="a process that died")
    with hold_runs(run.path.parent):
        assert refresh(run).state == "failed" and run.status().state == "running"
    assert refresh(run).state == "failed" and run.status().state == "failed"


def test_two_programs_that_resume_one_run_start_one_process(make):
    run = make()
    starting.claim(run)
    for start in (starting.claim, lambda run: starting.resume(run.path.parent, run)):
        with pytest.raises(UserError, match="is starting already"):
            start(run)
    assert run.status().pid == os.getpid()


# --- the long version ------------------------------------------------------------------------------------------------


@long
def test_a_run_that_is_killed_at_ten_random_moments_has_the_same_numbers(make, table):
    """By the launcher's own processes. The moments are seeded: two while it loads, the others within the iterations."""
    moments, run = random.Random(0), make(iterations=20)
    plain = make(iterations=20)
    launcher.start(plain)
    ends(plain, plain.status().pid)
    run.rename("mine")
    kept = set()
    for number in range(KILLS):
        launcher.start(run, resume=number > 0)
        loading = number in (0, 5)
        if not loading:
            until = time.monotonic() + 200
            while run.status().state != "running":
                assert time.monotonic() < until, run.log_tail()
                time.sleep(0.01)
        # In seconds that would not depend on the machine the run could end before it is killed.
        time.sleep(moments.uniform(0, 4 if loading else plain.status().slowest_seconds))
        if number == 3:
            save_now(run)
        before = run.status()
        kill(run)
        becomes(run, "failed")
        saved = {int(path.name) for path in run.checkpoints()}
        assert not kept or max(saved) >= max(kept)
        kept = saved
        at = f"{before.state}, iteration {before.iteration}, {before.phase or 'loading'} {before.phase_done:.0%}"
        table.append(f"  kill {number + 1:2} at {at:45} | resumes from {max(saved, default='the start')}")
    launcher.start(run, resume=True)
    ends(run, run.status().pid)
    assert numbers(run) == numbers(plain) and run.title == "mine"
    assert np.isfinite([row["reward_mean"] for row in run.read_metrics()]).all()
