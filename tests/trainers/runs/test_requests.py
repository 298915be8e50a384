"""Save now and sample now: what is answered, and to which runs."""

from __future__ import annotations

import pytest

from trainers.config import make_config
from trainers.errors import UserError
from trainers.runs.folder import RunFolder
from trainers.runs.requests import sample_now, save_now


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path, make_config("tiny", {"iterations": 4}), "a")


@pytest.mark.parametrize(
    "state, iteration, after", [("starting", 0, 0), ("running", 0, 1), ("running", 2, 3), ("running", 4, 4)]
)
def test_the_answer_names_the_iteration(run, state, iteration, after):
    run.set_status(state=state, iteration=iteration)
    assert save_now(run) == f"run {run.id} will save after iteration {after}"
    assert sample_now(run) == f"run {run.id} will sample held-out clips after iteration {after}"
    assert run.requested("save") and run.requested("sample")


@pytest.mark.parametrize(
    "state, save, sample",
    [
        ("queued", "nothing was saved", "it has no clips; resume it first"),
        ("stopped", "nothing was saved", "it has no clips; resume it first"),
        ("finished", "its last LoRA is saved already", "its newest clips are of iteration 3"),
    ],
)
def test_a_run_that_does_not_train_is_refused_with_what_it_has(run, state, save, sample):
    run.set_status(state=state)
    if state == "finished":
        (run.samples_folder / "000003").mkdir()
        (run.samples_folder / "000003" / "00-a.webp").touch()
    for ask, reason in ((save_now, save), (sample_now, sample)):
        with pytest.raises(UserError, match=reason):
            ask(run)
    assert not run.requested("save") and not run.requested("sample")
