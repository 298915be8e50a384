"""Finding runs, and saying what has become of them."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainers.config import make_config
from trainers.errors import UserError
from trainers.processes import adopt, alive, reap, start_token
from trainers.runs.folder import RunFolder
from trainers.runs.registry import find, is_alive, latest, list_runs, refresh


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
