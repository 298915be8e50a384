"""Deleting a run, and undoing it."""

from __future__ import annotations

import os
import time

import pytest

from trainers.config import make_config
from trainers.errors import UserError
from trainers.runs import trash
from trainers.runs.folder import RunFolder
from trainers.runs.registry import list_runs


@pytest.fixture
def make(tmp_path):
    def make(name: str = "a", state: str = "stopped") -> RunFolder:
        run = RunFolder.create(tmp_path, make_config("tiny"), name)
        run.set_status(state=state)
        return run

    return make


def backdate(root, days: float) -> None:
    (only,) = trash.deleted_runs(root)
    only.path.rename(only.path.with_name(f"{int(time.time() - days * trash.DAY)}-{only.id}"))


def test_a_deleted_run_is_restored_as_it_was(make, tmp_path):
    run = make()
    before = {p.relative_to(run.path): p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    trash.delete(run)
    assert list_runs(tmp_path) == [] and [deleted.id for deleted in trash.deleted_runs(tmp_path)] == [run.id]
    again = trash.restore(tmp_path, run.id)
    assert again.path == run.path and trash.deleted_runs(tmp_path) == []
    assert {p.relative_to(run.path): p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("state", ["starting", "running"])
def test_a_run_that_trains_is_not_deleted(make, tmp_path, state):
    run = make(state=state)
    with pytest.raises(UserError, match=f"{run.id} is {state} and cannot be deleted; stop it first"):
        trash.delete(run)
    assert [found.id for found in list_runs(tmp_path)] == [run.id]


def test_a_run_that_waits_is_not_deleted(make):
    run = make()
    run.set_status(state="running")  # signed with this process
    run.set_status(state="queued")
    with pytest.raises(UserError, match="is queued and cannot be deleted"):
        trash.delete(run)


def test_latest_is_the_run_that_was_deleted_last(make, tmp_path):
    older, newer = make("older"), make("newer")
    trash.delete(newer)
    backdate(tmp_path, 1)
    trash.delete(older)
    assert trash.restore(tmp_path, "latest").id == older.id


@pytest.mark.parametrize("text, reason", [("x", "`x` is no deleted run"), ("same", "is not the id of one deleted run")])
def test_a_text_that_is_not_one_deleted_run_names_those_there_are(make, tmp_path, text, reason):
    runs = [make("same"), make("same")]
    for run in runs:
        trash.delete(run)
    with pytest.raises(UserError, match=reason) as caught:
        trash.restore(tmp_path, text)
    assert all(run.id in str(caught.value) for run in runs)


def test_an_empty_trash_restores_nothing(tmp_path):
    with pytest.raises(UserError, match="no run was deleted"):
        trash.restore(tmp_path, "latest")


def test_emptying_removes_only_what_is_old_enough(make, tmp_path):
    old, new = make("old"), make("new")
    trash.delete(old)
    backdate(tmp_path, 5)
    trash.delete(new)
    assert trash.empty(tmp_path, days=4) == [old.id]
    assert [p.name.partition("-")[2] for p in (tmp_path / trash.FOLDER).iterdir()] == [new.id]
    assert trash.empty(tmp_path) == [new.id] and not os.listdir(tmp_path / trash.FOLDER)


def test_deleting_removes_what_has_expired(make, tmp_path):
    old, new = make("old"), make("new")
    trash.delete(old)
    backdate(tmp_path, trash.KEPT_DAYS + 1)
    trash.delete(new)
    assert [run.id for run in trash.deleted_runs(tmp_path)] == [new.id]


def test_the_trash_is_no_run_and_what_else_lies_in_it_stays(make, tmp_path):
    trash.delete(make())
    (tmp_path / trash.FOLDER / "notes.txt").write_text("mine")
    trash.empty(tmp_path)
    assert [p.name for p in (tmp_path / trash.FOLDER).iterdir()] == ["notes.txt"]
