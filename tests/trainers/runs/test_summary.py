"""What is said and shown of a run."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from trainers.config import make_config
from trainers.prompts import PromptItem
from trainers.runs.folder import RunFolder
from trainers.runs.pictures import curve, newest_clips
from trainers.runs.summary import sentence, summary

EVALUATION = {"kind": "evaluation", "win_low": 0.7, "win_high": 0.9, "reward_mean": 1.0}


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path, make_config("tiny", {"iterations": 20}), "a")


def test_a_running_run_says_how_long_it_will_take(run):
    run.set_status(state="running", iteration=5, phase="rollouts", phase_done=0.25, eta_seconds=185)
    assert sentence(run) == f"{run.id}: running, iteration 5 of 20, rollouts 25%, 3 min 5 s left"


def test_the_last_measurement_is_told(run):
    run.append_metrics(EVALUATION | {"iteration": 0, "win": 0.5, "margin": 0.0, "identity": 0.5})
    run.append_metrics(EVALUATION | {"iteration": 10, "win": 0.8, "margin": 1.5, "identity": 0.6, "identity_gain": 0.2})
    told = summary(run)
    assert "iteration 10 against the base policy: win rate 80%" in told and "70% to 90%" in told and "+20.0%" in told


def test_before_anything_is_measured_nothing_is_claimed(run):
    run.append_metrics(EVALUATION | {"iteration": 0, "win": 0.5, "margin": 0.0})
    assert "win rate" not in summary(run)


def test_a_failed_run_says_why_and_how_to_go_on(run):
    run.set_status(state="failed", last_error="NaN in the loss")
    assert "NaN in the loss" in summary(run) and "Resume" in summary(run)


def test_a_run_that_was_never_started_says_so_and_one_in_the_queue_its_place(run):
    assert "Not started yet" in summary(run)
    run.set_status(state="running")  # signed with this process
    run.set_status(state="queued", place=3, message="waits for the CPU")
    assert summary(run) == f"{run.id}: queued, place 3\nwaits for the CPU"


def test_a_run_goes_by_its_title(run):
    run.rename("two people")
    assert sentence(run).startswith(f"two people ({run.id}): queued")


def test_there_are_pictures_before_there_is_anything_to_show(run):
    assert curve(run).shape[-1] == 3 and newest_clips(run).shape[0] == 1


def test_pictures_that_were_deleted_are_not_missed(run):
    shutil.rmtree(run.samples_folder)
    assert newest_clips(run).shape[0] == 1


def test_a_measurement_without_its_numbers_is_not_told(run):
    run.append_metrics({"kind": "evaluation", "iteration": 10, "win": float("nan")})
    assert "win rate" not in summary(run)


def test_the_newest_clips_are_side_by_side(run):
    people = [PromptItem(f"p{i}", "a wave", ()) for i in range(2)]
    run.write_clips(1, people, np.zeros((2, 3, 16, 16, 3), np.uint8), 10.0)
    run.write_clips(4, people, np.full((2, 3, 16, 16, 3), 200, np.uint8), 10.0)
    clips = newest_clips(run)
    assert clips.shape == (3, 16, 32, 3) and (clips == 200).all()
