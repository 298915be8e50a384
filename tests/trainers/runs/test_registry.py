"""Finding runs, and saying what has become of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainers.config import make_config
from trainers.errors import UserError
from trainers.processes import adopt, alive, reap, start_token
from trainers.runs import trash
from trainers.runs.folder import RunFolder
from trainers.runs.launcher import stop
from trainers.runs.registry import find, is_alive, latest, list_runs, refresh
from trainers.runs.status import WAITS


def make(root, name="tiny") -> RunFolder:
    return RunFolder.create(root, make_config("tiny"), name)


def dated(root, run: RunFolder, stamp: str) -> RunFolder:
    return RunFolder(run.path.rename(root / f"{run.id.rsplit('-', 3)[0]}-{stamp}"))


def dead_process() -> tuple[int, str]:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    since = start_token(child.pid)
    child.communicate()
    return child.pid, since


def test_runs_are_listed_by_age_whatever_their_names(tmp_path):
    second = dated(tmp_path, make(tmp_path, "a"), "20260102-000000-0000")
    first = dated(tmp_path, make(tmp_path, "b"), "20260101-000000-ffff")
    (tmp_path / "notes").mkdir()
    assert [r.id for r in list_runs(tmp_path)] == [first.id, second.id]
    assert latest(tmp_path).id == second.id


def test_a_folder_that_is_not_there_has_no_runs(tmp_path):
    assert list_runs(tmp_path / "none") == []
    with pytest.raises(UserError, match="there are no runs"):
        latest(tmp_path / "none")


def test_a_run_is_found_by_id_beginning_path_and_age(tmp_path):
    one, two = make(tmp_path, "one"), make(tmp_path, "two")
    for text, expected in ((one.id, one), ("two", two), (str(one.path), one), ("latest", latest(tmp_path))):
        assert find(tmp_path, text).id == expected.id


def test_an_ambiguous_beginning_names_the_candidates(tmp_path):
    ids = [make(tmp_path, "same").id for _ in range(2)]
    with pytest.raises(UserError, match="may be any of") as caught:
        find(tmp_path, "same")
    assert all(i in str(caught.value) for i in ids)


def test_an_unknown_run_names_the_known_ones(tmp_path):
    run = make(tmp_path)
    with pytest.raises(UserError, match=run.id):
        find(tmp_path, "other")


def test_a_dead_process_makes_a_failed_run_with_the_log_s_end(tmp_path):
    run = make(tmp_path)
    pid, since = dead_process()
    run.set_status(state="running", pid=pid, pid_started=since)
    run.log_file.write_text("loading\nCUDA out of memory\n")
    status = refresh(run)
    assert status.state == "failed" and "CUDA out of memory" in status.last_error
    assert run.status().state == "failed"


def test_a_run_that_died_in_the_queue_waits_for_nothing(tmp_path):
    run = make(tmp_path)
    pid, since = dead_process()
    run.set_status(state="queued", pid=pid, pid_started=since, place=3, message="waits for the CPU, place 3")
    assert (refresh(run).state, run.status().place, run.status().message) == ("failed", None, "")


def test_what_a_run_reported_while_it_trained_stays_when_it_dies(tmp_path):
    run = make(tmp_path)
    pid, since = dead_process()
    run.set_status(state="running", pid=pid, pid_started=since, phase="update", message="checkpoint 2 is damaged")
    assert refresh(run).message == "checkpoint 2 is damaged"


def test_a_dead_process_is_told_where_nothing_can_be_written(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("read-only")

    run = make(tmp_path)
    pid, since = dead_process()
    run.set_status(state="running", pid=pid, pid_started=since)
    monkeypatch.setattr("trainers.runs.folder.write_atomic", refuse)
    status = refresh(run)
    assert status.state == "failed" and f"process {pid} has exited" in status.last_error


def test_a_number_given_to_another_process_does_not_keep_a_run_alive(tmp_path):
    run = make(tmp_path)
    run.set_status(state="running", pid=os.getpid(), pid_started="another start")
    assert refresh(run).state == "failed"


def test_a_zombie_is_dead():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    since = start_token(child.pid)
    assert alive(child.pid, since)
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not alive(child.pid, since)
    child.wait()


def test_a_living_run_stays_as_it_is(tmp_path):
    run = make(tmp_path)
    run.set_status(state="running")
    assert refresh(run).state == "running" and is_alive(run)


def test_a_stopping_run_that_died_has_failed(tmp_path):
    run = make(tmp_path)
    pid, since = dead_process()
    run.set_status(state="running", pid=pid, pid_started=since)
    run.request("stop")
    assert refresh(run).state == "failed"


@pytest.mark.parametrize("state", ["queued", "stopped", "finished", "failed"])
def test_a_run_at_rest_needs_no_process(tmp_path, state):
    run = make(tmp_path)
    run.set_status(state=state)
    assert refresh(run).state == state


def test_a_run_of_another_machine_is_believed(tmp_path, monkeypatch):
    run = make(tmp_path)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("trainers.runs.folder.host", lambda: "elsewhere")
        run.set_status(state="running", pid=dead_process()[0], pid_started="x")
    assert refresh(run).state == "running"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> RunFolder:
    """A run that trains on another machine, or did in a container that was made anew since."""
    run = make(tmp_path)
    with monkeypatch.context() as other:
        other.setattr("trainers.runs.folder.host", lambda: "elsewhere")
        run.set_status(state="running", pid=dead_process()[0], pid_started="x")
    monkeypatch.setattr("trainers.runs.launcher.WATCHED_SECONDS", 0.0)
    return run


def age(run: RunFolder, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(run.path / "status.json", (then, then))


def test_a_run_whose_container_is_gone_hangs_and_is_stopped(elsewhere):
    age(elsewhere, 300)
    assert "container `elsewhere` has given no sign of life for 5 min 0 s; Stop ends" in refresh(elsewhere).message
    assert stop(elsewhere) == "stopped" and "gives no sign of life" in elsewhere.status().message
    assert refresh(elsewhere).state == "stopped"  # it can be resumed and deleted


def test_a_run_of_another_machine_that_waits_for_the_others_does_not_hang(elsewhere):
    with pytest.MonkeyPatch.context() as there:
        there.setattr("trainers.runs.folder.host", lambda: "elsewhere")
        elsewhere.set_status(state="starting", pid=elsewhere.status().pid, message=f"{WAITS}; start …")
    age(elsewhere, 300)
    assert refresh(elsewhere).state == "starting"


def test_a_run_of_another_machine_that_gives_signs_again_is_only_asked_to_stop(elsewhere, monkeypatch):
    age(elsewhere, 300)
    signs = iter([1.0, 1.0, 2.0])
    monkeypatch.setattr("trainers.runs.launcher.last_sign", lambda run: next(signs))
    monkeypatch.setattr("trainers.runs.launcher.WATCHED_SECONDS", 60.0)
    assert stop(elsewhere) == "stopping" and elsewhere.requested("stop")


def test_a_run_lives_on_when_its_machine_gets_another_name(tmp_path, monkeypatch):
    run = make(tmp_path)
    with monkeypatch.context() as before:
        before.setattr("trainers.runs.folder.host", lambda: "before")
        run.set_status(state="running")
    age(run, 300)
    assert refresh(run).state == "running"


def test_a_copy_of_a_run_that_trains_is_another_run_without_a_process(tmp_path):
    run = make(tmp_path)
    run.set_status(state="running")
    copy = RunFolder(shutil.copytree(run.path, tmp_path / "copy"))
    status = refresh(copy)  # a stop of it would end the process of the other
    assert status.state == "failed" and f"a copy of {run.path}" in status.last_error
    assert refresh(run).state == "running"


def test_a_run_that_was_moved_while_it_trains_keeps_its_process(tmp_path):
    run = make(tmp_path)
    run.set_status(state="running")
    assert refresh(RunFolder(run.path.rename(tmp_path / "moved"))).state == "running"


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_id_is_no_run(tmp_path, text):
    trash.delete(make(tmp_path))
    make(tmp_path)
    for choose in (find, trash.restore):
        with pytest.raises(UserError, match="the run's id is empty"):
            choose(tmp_path, text)


def test_one_damaged_run_hides_no_other(tmp_path):
    good, bad = make(tmp_path, "good"), make(tmp_path, "bad")
    (bad.path / "status.json").write_text('{"state": 7}')
    assert {run.name: refresh(run).state for run in list_runs(tmp_path)} == {"good": "queued", "bad": "damaged"}
    assert good.id in [run.id for run in list_runs(tmp_path)]


@pytest.mark.pipes
@pytest.mark.parametrize("put", [lambda p: os.mkfifo(p), Path.mkdir, lambda p: p.symlink_to("nowhere")])
def test_a_run_whose_settings_cannot_be_read_stays_in_the_list(tmp_path, put):
    run = make(tmp_path)
    (run.path / "config.yaml").unlink()
    put(run.path / "config.yaml")
    assert [found.id for found in list_runs(tmp_path)] == [run.id] == [find(tmp_path, str(run.path)).id]
    assert refresh(run).state == "queued"
    with pytest.raises(UserError, match="cannot read the configuration .*config.yaml"):
        run.config()


@pytest.mark.parametrize("pid", [0, -1, 2**40, 10**30])
def test_a_number_that_is_no_process_is_dead(pid):
    assert not alive(pid, "x") and start_token(pid) is None


def test_many_threads_may_ask_at_once(tmp_path):
    for _ in range(5):
        adopt(subprocess.Popen([sys.executable, "-c", ""]))
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(reap) for _ in range(200)]:
            done.result()
