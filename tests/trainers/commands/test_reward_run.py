"""A run that trains a reward: what its process leaves, stopping and resuming it, and what it has not."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from trainers.cli import main
from trainers.config import RewardRunConfig
from trainers.errors import UserError
from trainers.preference.folder import PairFolder
from trainers.runs.cards import card
from trainers.runs.chosen_settings import chosen_settings
from trainers.runs.folder import RunFolder
from trainers.runs.launcher import processes_on, start
from trainers.runs.machines import Machines
from trainers.runs.requests import sample_now
from trainers.runs.starting import copy_run, find_same
from trainers.runs.summary import summary

from ..runs.test_faults import LONG

pytestmark = pytest.mark.usefixtures("small_clips")


@pytest.fixture
def config(bright_votes: PairFolder, base_model: Path) -> RewardRunConfig:
    return RewardRunConfig(
        preset="tiny",
        iterations=6,
        pairs=str(bright_votes.path),
        pairs_bytes=bright_votes.voted_size(),
        base_model=str(base_model),
        held_out=0.3,
        learning_rate=3e-3,
        evaluations=3,
    )


@pytest.fixture
def run(here: Path, config: RewardRunConfig) -> RunFolder:
    return RunFolder.create(here, config, "taste")


def test_it_ends_with_a_reward_its_curve_and_its_accuracy(run: RunFolder, capsys) -> None:
    assert main(["work", str(run.path)]) == 0
    status = run.status()
    assert (status.state, status.iteration, status.iterations) == ("finished", 6, 6)
    assert run.has_reward() and (run.reward_folder / "calibration.png").is_file() and run.curve_file.is_file()
    rows = run.read_metrics()
    assert [row["iteration"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [row["iteration"] for row in rows if row["kind"] == "evaluation"] == [2, 4, 6]
    assert "of the held-out pairs" in summary(run) and str(run.reward_folder) in summary(run)
    shown = card(run)
    assert shown["kind"] == "reward" and shown["spark"][-1] == rows[-1]["accuracy"]
    assert not run.checkpoints() and not run.exports()
    assert main(["runs", "show", run.id, "--runs", str(run.path.parent)]) == 0
    assert "trains   a reward on" in (text := capsys.readouterr().out) and "accuracy_with_ties" in text


def test_a_stopped_run_is_resumed_where_it_was(run: RunFolder, capsys) -> None:
    run.request("stop")
    assert main(["work", str(run.path)]) == 0
    assert (run.status().state, run.status().iteration) == ("stopped", 1)
    assert [path.name for path in run.checkpoints()] == ["000001"]
    assert "Resume continues from iteration 1." in summary(run)
    assert main(["resume", run.id, "--runs", str(run.path.parent)]) == 0
    assert run.status().state == "finished" and run.has_reward()
    assert [row["iteration"] for row in run.training()] == [1, 2, 3, 4, 5, 6]
    assert str(run.reward_folder) in capsys.readouterr().out


def numbers(run: RunFolder) -> list[float]:
    return [row[name] for row in run.read_metrics() for name in ("preference_loss", "accuracy") if name in row]


def test_a_run_of_one_process_is_resumed_by_two_as_if_it_were_one(run: RunFolder, config, in_processes) -> None:
    assert main(["work", str(run.path)]) == 0
    both = RunFolder.create(run.path.parent, config, "both")
    both.request("stop")
    assert main(["work", str(both.path)]) == 0
    assert in_processes(2, ["work", str(both.path), "--resume"]) == [0, 0]
    assert both.status().state == "finished" and both.has_reward()
    assert numbers(both) == pytest.approx(numbers(run), abs=2e-3)
    assert (both.reward_folder / "calibration.png").is_file() and len(both.training()) == 6


def test_a_process_that_cannot_read_its_pairs_ends_the_run_with_the_reason(
    run: RunFolder, config: RewardRunConfig, bright_votes: PairFolder, tmp_path: Path, in_processes
) -> None:
    """Of the pairs of a step the broken one is another process's."""
    folder = PairFolder(tmp_path / "pairs")
    folder.merge(bright_votes)
    for clip in tmp_path.glob("pairs/**/*.webp"):
        clip.write_bytes(b"broken")
    changes = {"pairs": str(folder.path), "pairs_bytes": folder.voted_size(), "held_out": 0.0}
    broken = RunFolder.create(run.path.parent, config.model_copy(update=changes), "broken")
    assert in_processes(2, ["work", str(broken.path)]) == [2, 2]
    assert broken.status().state == "failed" and ".webp" in broken.status().last_error


@pytest.mark.skipif(LONG not in os.environ, reason=f"starts four processes; set {LONG}=1 to run it")
def test_another_machine_joins_it_as_it_joins_a_run_of_train(
    run: RunFolder, tmp_path: Path, background, monkeypatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    child = start(run, gpus=(), machines=Machines(2, 0, address))
    command = run.status().message.partition("-m trainers ")[2].split()
    (tmp_path / "locks").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "locks"))
    other = background(*command, "--runs", str(tmp_path / "other machine"))
    assert child.wait(200) == 0 and other.wait(60) == 0, run.log_tail(40)
    assert run.status().state == "finished" and run.has_reward() and len(run.training()) == 6
    assert RunFolder(tmp_path / "other machine" / run.id).status().state == "finished"


def test_every_gpu_has_a_process(config: RewardRunConfig) -> None:
    assert processes_on([0, 2], config) == 2


def test_without_a_vote_it_fails_and_says_so(run: RunFolder, config: RewardRunConfig, capsys) -> None:
    empty = RunFolder.create(run.path.parent, config.model_copy(update={"pairs_bytes": 0}))
    assert main(["work", str(empty.path)]) == 2
    assert empty.status().state == "failed" and "vote first" in empty.status().last_error


def test_it_has_no_policy_and_no_clips(run: RunFolder) -> None:
    with pytest.raises(UserError, match="trains a reward and has no policy"):
        run.config()
    with pytest.raises(UserError, match="trains a reward and has no clips"):
        sample_now(run)


def test_the_same_settings_are_the_same_run_and_another_number_is_a_new_one(
    run: RunFolder, config: RewardRunConfig
) -> None:
    assert find_same(run.path.parent, config, "taste").id == run.id
    assert find_same(run.path.parent, config.model_copy(update={"iterations": 7}), "taste") is None
    copy = copy_run(run, {"iterations": 7})
    assert copy.kind == "reward" and copy.status().iterations == 7


def test_its_settings_are_listed_with_those_that_were_chosen(run: RunFolder) -> None:
    found = {row["name"]: row for row in chosen_settings(run.settings())}
    assert found["iterations"]["number"] == 6 and not found["iterations"]["differs"]
    assert found["held_out"]["differs"] and "kind" not in found


def test_later_pairs_are_no_new_votes_and_later_votes_are(tmp_path: Path, bright_votes: PairFolder) -> None:
    folder = PairFolder(tmp_path / "pairs")
    assert folder.voted_size() == 0
    folder.merge(bright_votes)
    data = folder.file.read_bytes()
    assert 0 < folder.voted_size() <= len(data)
    assert len(folder.read(folder.voted_size()).votes) == 12
    before = folder.voted_size()
    with open(folder.file, "ab") as file:
        file.write(b'{"pair": "late", "clip_a": "a", "clip_b": "b", "references": ["c"]}\n')
    assert folder.voted_size() == before
