"""Runs as children."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from trainers.config import make_config
from trainers.processes import alive, start_token
from trainers.runs.folder import RunFolder
from trainers.runs.launcher import command, join_message, start, stop
from trainers.runs.machines import Machines
from trainers.runs.registry import refresh

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

# What ComfyUI does: the pack is a folder of any name, loaded as a package of another name; nothing is installed.
HOST = """
import importlib.util, sys
from pathlib import Path
pack = Path(sys.argv[1])
places = [str(pack)]
spec = importlib.util.spec_from_file_location("identity_grpo", pack / "__init__.py", submodule_search_locations=places)
module = importlib.util.module_from_spec(spec)
sys.modules["identity_grpo"] = module
spec.loader.exec_module(module)
from identity_grpo.trainers.runs.folder import RunFolder
from identity_grpo.trainers.runs.launcher import start
assert "trainers" not in sys.modules
print(start(RunFolder(sys.argv[2])).pid)
"""


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def make(root: Path, models: dict, **changes) -> RunFolder:
    return RunFolder.create(root, make_config("tiny", SMALL | models | changes))


def wait_for(run: RunFolder, *states: str, seconds: float = 120) -> dict:
    until = time.monotonic() + seconds
    while (status := refresh(run)).state not in states:
        assert status.state != "failed", status
        assert time.monotonic() < until, status
        time.sleep(0.1)
    return status


def test_the_child_is_an_argument_list_of_our_making(tmp_path, small_models):
    run = make(tmp_path, small_models)
    assert command(run) == [sys.executable, "-m", "trainers", "work", str(run.path)]
    several = command(run, resume=True, processes=2, machines=Machines(3, 1, "10.0.0.1:29500"))
    assert several[3:7] == ["work", str(run.path), "--resume", "--processes"]
    assert several[7:] == ["2", "--machines", "3", "--machine-rank", "1", "--rendezvous", "10.0.0.1:29500"]


def test_a_copy_of_the_pack_under_any_name_runs_what_outlives_its_host(repository, tmp_path, small_models):
    pack = tmp_path / "comfy-pack copy"
    pack.mkdir()
    shutil.copy(repository / "__init__.py", pack)
    # TinyWorld's weights, which the run does not use, are the largest part.
    shutil.copytree(
        repository / "trainers",
        pack / "trainers",
        ignore=lambda folder, _: {"weights", "__pycache__"} if folder.endswith("tinyworld") else {"__pycache__"},
    )
    with open(pack / "trainers" / "__main__.py", "r+") as file:
        text = file.read()
        file.seek(0)
        file.write(text.replace("import sys\n", "import sys\nprint('the copy runs')\n"))
    run = make(tmp_path / "runs", small_models)
    comfy = tmp_path / "host"
    for name in ("trainers", "utils"):
        (comfy / name).mkdir(parents=True)
        (comfy / name / "__init__.py").write_text("raise RuntimeError('a folder of the host was imported')")
    host = subprocess.run(
        [sys.executable, "-c", HOST, str(pack), str(run.path)], cwd=comfy, capture_output=True, text=True, check=False
    )
    assert host.returncode == 0, host.stderr
    child = psutil.Process(int(host.stdout))
    assert os.getsid(child.pid) == child.pid != os.getsid(0)
    child.wait(120)
    assert refresh(run).state == "finished"
    assert "the copy runs" in run.log_tail(50) and "finished at iteration 1" in run.log_tail(50)
    assert list(run.exports_folder.glob("*.safetensors"))


def test_stop_ends_a_run_gently_and_resume_finishes_it(tmp_path, small_models):
    run = make(tmp_path, small_models, iterations=3)
    child = start(run)
    until = time.monotonic() + 120
    while not list(run.checkpoints_folder.glob("000001")):
        assert child.poll() is None and time.monotonic() < until, run.log_tail()
        time.sleep(0.02)
    assert stop(run, wait=60) == "stopped"
    assert child.wait(30) == 0 and run.status().message == ""
    run.request("stop")  # made to the process that is gone: it must not stop the next
    assert start(run, resume=True).wait(120) == 0, run.log_tail()
    assert run.status().state == "finished"
    assert [row["iteration"] for row in run.read_metrics() if row["kind"] == "train"] == [1, 2, 3]


def deaf(run: RunFolder) -> subprocess.Popen:
    """A process in the run's place that hears neither requests nor SIGINT."""
    program = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout.readline() == "deaf\n"
    run.set_status(state="running", pid=child.pid, group=child.pid, pid_started=start_token(child.pid))
    return child


def test_a_run_that_does_not_listen_is_ended_by_force(tmp_path, small_models):
    run = make(tmp_path, small_models)
    child = deaf(run)
    assert stop(run, wait=0.5) == "stopped"
    assert child.wait(5) == -signal.SIGKILL
    assert "by force" in run.status().message and not run.take("stop")


def test_a_run_that_waits_for_other_machines_is_ended_without_waiting_for_it(tmp_path, small_models):
    run = make(tmp_path, small_models)
    child = deaf(run)
    run.set_status(state="starting", message=join_message(1, Machines(2, 0, "head:1")))
    assert stop(run, wait=600) == "stopped"
    assert child.wait(5) == -signal.SIGKILL
    assert run.status().message == "it was stopped before the other machines had joined" and not run.take("stop")


def test_processes_in_a_group_of_their_own_are_ended_by_force_too(tmp_path, small_models):
    run = make(tmp_path, small_models)
    program = (
        "import subprocess, sys, time; nap = 'import time; time.sleep(600)';"
        "print(subprocess.Popen([sys.executable, '-c', nap], start_new_session=True).pid, flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True)
    rank = int(child.stdout.readline())
    started = start_token(rank)
    run.set_status(state="running", pid=rank, group=child.pid, pid_started=started)
    assert stop(run, wait=0.2) == "stopped"
    assert child.wait(5) == -signal.SIGKILL and not alive(rank, started)


def test_a_run_at_rest_cannot_be_stopped(tmp_path, small_models):
    run = make(tmp_path, small_models)
    run.set_status(state="finished")
    assert stop(run) == "finished" and not run.take("stop")


def test_a_child_that_dies_at_its_start_is_a_failed_run_with_its_words(tmp_path, small_models):
    run = make(tmp_path, small_models | {"policy": {"source": str(tmp_path / "none")}})
    child = start(run)
    assert child.wait(120) == 2
    status = refresh(run)
    assert status.state == "failed" and "no policy at" in status.last_error


def test_a_killed_child_is_a_failed_run_and_leaves_no_zombie(tmp_path, small_models):
    """Killed as soon as it has started: what is done about it is the same as in the middle of the training."""
    run = make(tmp_path, small_models)
    child = start(run)
    status = run.status()
    os.killpg(child.pid, signal.SIGKILL)
    until = time.monotonic() + 10
    while alive(status.pid, status.pid_started) and time.monotonic() < until:
        time.sleep(0.05)
    assert refresh(run).state == "failed"
    while psutil.pid_exists(child.pid) and time.monotonic() < until:
        refresh(run)
    assert not psutil.pid_exists(child.pid)
