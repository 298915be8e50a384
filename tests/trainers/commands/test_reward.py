"""`reward`: from pairs on disk to a reward, and what is compared and asked with it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from trainers.cli import main
from trainers.commands import reward_proof, several
from trainers.pictures.clips import write_animation
from trainers.preference.folder import PairFolder

pytestmark = pytest.mark.usefixtures("small_clips")


def clip(level: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-20, 21, (4, 28, 28, 3))
    return (level + noise).clip(0, 255).astype(np.uint8)


def train_line(pairs: Path, base_model: Path, out: Path, steps: int) -> list[str]:
    """The command that trains a reward on them."""
    return ["reward", "train", *map(str, (pairs, "--base-model", base_model, "--out", out, "--steps", steps))]


@pytest.fixture(scope="module")
def trained(bright_votes, base_model, small_clips) -> Path:
    """A reward trained on the pairs by the command."""
    out = bright_votes.path.parent / "reward"
    line = train_line(bright_votes.path, base_model, out, 8)
    options = ["--batch-size", "6", "--learning-rate", "3e-3", "--rank", "4", "--alpha", "8", "--held-out", "0.3"]
    assert main([*line, *options, "--evaluations", "2", "--device", "cpu"]) == 0
    return out


def test_training_writes_the_reward_its_accuracy_and_its_calibration(trained):
    found = json.loads((trained / "training.json").read_text(encoding="utf-8"))
    assert found["held_out"]["without_ties"] == 1.0 and found["held_out"]["by_kind"] == {"bright": 1.0}
    assert (trained / "calibration.png").is_file() and (trained / "checkpoint-8").is_dir()
    assert (trained / "checkpoint-8" / "non_lora_state_dict.pth").is_file()


def test_two_processes_train_the_reward_of_one(bright_votes, base_model, tmp_path, in_processes, monkeypatch):
    """Adam's steps are of the learning rate's size, 3e-3: float order alone changes them by much less. Gradients are
    sent in several parts."""
    monkeypatch.setattr("trainers.ranks.SUMMED_AT_ONCE", 5000)
    line = train_line(bright_votes.path, base_model, tmp_path / "one", 2)
    line += ["--device", "cpu", "--recipe", "tiny", "--evaluations", "1", "--held-out", "0.3"]
    line += ["--batch-size", "5", "--learning-rate", "3e-3", "--rank", "4", "--alpha", "8"]
    assert main(line) == 0
    assert in_processes(2, [*line, "--out", str(tmp_path / "two")]) == [0, 0]
    for file in ("adapter_model", "non_lora_state_dict"):
        one, two = (load_file(tmp_path / name / "checkpoint-2" / f"{file}.safetensors") for name in ("one", "two"))
        assert one.keys() == two.keys()
        assert max((one[name] - two[name]).abs().max().item() for name in one) < 6e-4
    one, two = (json.loads((tmp_path / name / "training.json").read_text()) for name in ("one", "two"))
    assert one["held_out"]["pairs"] == two["held_out"]["pairs"] > 1
    assert two["log"][-1]["held_out"]["loss"] == pytest.approx(one["log"][-1]["held_out"]["loss"], abs=1e-3)


@pytest.fixture
def started(monkeypatch) -> list[tuple]:
    """What `reward train` would start in several processes."""
    found: list[tuple] = []
    monkeypatch.setattr("trainers.commands.reward_train.start_again", lambda *given: found.append(given) or 0)
    return found


def test_several_processes_are_started(bright_votes, base_model, tmp_path, started):
    line = train_line(bright_votes.path, base_model, tmp_path / "out", 1)
    assert main([*line, "--processes", "2", "--device", "cpu"]) == 0
    ((processes, on_cpu, remedy),) = started
    assert (processes, on_cpu) == (2, True) and "--resume" in remedy


@pytest.mark.parametrize(
    "options, problem",
    [
        (["--out", "{trained}"], "already holds checkpoint-8"),
        (["--resume"], "holds no training to resume"),
        (["--test", "none"], "none holds no pairs.jsonl"),
        (["--automatic", "none"], "none holds no pairs.jsonl"),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else "",
)
def test_what_cannot_be_trained_is_refused_before_processes_are_started(
    bright_votes, base_model, trained, here, started, capsys, options, problem
):
    line = train_line(bright_votes.path, base_model, here / "out", 1)
    words = [*line, "--processes", "2", "--device", "cpu", *(word.format(trained=trained) for word in options)]
    assert main(words) == 2
    assert problem in capsys.readouterr().err and not started


def test_one_of_several_leaves_its_error_to_the_process_that_started_it(base_model, here, monkeypatch, capsys):
    monkeypatch.setenv(several.FOLDER, str(here))
    with pytest.raises(SystemExit):
        main(train_line(here / "none", base_model, here / "out", 1))
    assert "holds no pairs.jsonl" in (here / several.ERROR).read_text() and not capsys.readouterr().err


def test_every_step_is_shown_with_the_time_left(bright_votes, base_model, tmp_path, monkeypatch):
    seen: list = []
    monkeypatch.setattr("trainers.commands.reward_train.open_display", lambda: Shown(seen))
    line = train_line(bright_votes.path, base_model, tmp_path / "out", 3)
    assert main([*line, "--held-out", "0", "--recipe", "tiny", "--device", "cpu"]) == 0
    assert [(report.iteration, report.iterations) for report in seen] == [(1, 3), (2, 3), (3, 3)]
    left = [report.eta_seconds for report in seen]
    assert left[0] > 0 and left[-1] == 0


class Shown:
    """A display that keeps what it is given."""

    def __init__(self, seen: list) -> None:
        self.seen = seen

    def __call__(self, report) -> None:
        self.seen.append(report)

    def line(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def test_both_rewards_of_a_comparison_are_looked_for_before_the_first_is_scored(
    bright_votes: PairFolder, capsys: pytest.CaptureFixture
) -> None:
    words = ["reward", "compare", "tinyworld", str(bright_votes.path), str(bright_votes.path), "--held-out", "0"]
    assert main(words) == 2
    out = capsys.readouterr()
    assert "model_config.json is missing" in out.err and not out.out


def test_two_rewards_are_compared_with_the_clips_on_which_they_differ(
    trained, bright_votes, base_model, tmp_path, capsys
):
    other = tmp_path / "other"
    line = train_line(bright_votes.path, base_model, other, 1)
    assert main([*line, "--held-out", "0", "--rank", "4", "--device", "cpu", "--seed", "3"]) == 0
    words = ["reward", "compare", str(other), str(trained), str(bright_votes.path), "--held-out", "0"]
    picture = tmp_path / "board.png"
    assert main([*words, "--base-model", str(base_model), "--picture", str(picture)]) == 0
    text = capsys.readouterr().out
    assert "prefer different clips of" in text
    assert picture.is_file() == ("of 12 pairs" in text and "different clips of 0 of" not in text)


def test_pairs_are_added_and_counted(bright_votes, tmp_path, capsys):
    for name, level in (("a", 10), ("b", 90)):
        write_animation(clip(level, 7), tmp_path / f"{name}.webp", 8)
    write_animation(clip(50, 8)[:1], tmp_path / "face.webp", 8)
    with open(tmp_path / "votes.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path_A", "path_B", "ref_paths", "SA"], ["a.webp", "b.webp", "face.webp", "same"]])
    new = tmp_path / "new"
    assert (
        main(["reward", "pairs", str(new), "--table", str(tmp_path / "votes.csv"), "--merge", str(bright_votes.path)])
        == 0
    )
    text = capsys.readouterr().out
    assert "15 pairs, 13 votes" in text and "anna" in text and "1 pairs read from" in text


def test_pairs_whose_clips_cannot_be_read_are_named_below_the_table(bright_votes, tmp_path, capsys):
    folder = PairFolder(tmp_path / "pairs")
    folder.merge(bright_votes)
    broken = next(iter(folder.read().pairs.values()))
    (folder.path / broken.clip_a).write_bytes(b"broken")
    assert main(["reward", "pairs", str(folder.path)]) == 2
    printed = capsys.readouterr()
    assert "14 pairs, 12 votes" in printed.out
    assert f"pair `{broken.pair}`: clip" in printed.err and printed.err.count("pair `") == 1


@pytest.mark.parametrize(
    "words, problem",
    [
        (["train", "none", "--out", "o", "--base-model", "tinyworld"], "holds no pairs.jsonl"),
        (["train", "none", "--out", "o"], "no base model is named"),
        (["train", "tinyworld", "--out", "o", "--held-out", "0.3", "--resume"], "without --held-out, --resume"),
        (["train", "tinyworld", "--out", "o", "--start", "none"], "none"),
        (["pairs", "none"], "holds no pairs.jsonl"),
        (["pairs", "new", "--clips", "a.webp", "b.webp"], "--reference a picture of every person"),
        (["distort", "new"], "no clip is given"),
        (["bench", "--size", "3b"], "give --size tiny"),
    ],
)
def test_what_cannot_be_done_is_said(words, problem, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reward", *words]) == 2
    assert problem in capsys.readouterr().err


def test_a_proof_of_other_votes_is_not_taken_for_this_one(tmp_path, capsys):
    (tmp_path / "options.json").write_text('{"votes": 100, "mistakes": 0.1}')
    assert main(["reward", "proof", "--runs", str(tmp_path)]) == 2
    assert "holds the results of another --votes" in capsys.readouterr().err


def test_pairs_are_sampled_with_two_seeds(tmp_path, capsys):
    """Of a prompt set's items, each on the disk before the next."""
    line = ["reward", "pairs", str(tmp_path / "pairs"), "--sample", "1", "--set", "evaluation.steps=2"]
    assert main(line) == 0
    (record,) = PairFolder(tmp_path / "pairs").read().pairs.values()
    assert record.kind == "two seeds" and record.prompt and record.clip_a != record.clip_b
    assert "1 of 1 pairs sampled" in capsys.readouterr().out


@pytest.mark.parametrize(
    "accuracies, holds", [([0.6, 0.4, 0.55, 0.45], True), ([0.6, 0.62, 0.61, 0.6], False), ([0.64, 0.38], True)]
)
def test_shuffled_votes_are_at_chance_where_the_interval_of_their_mean_contains_it(accuracies, holds):
    assert reward_proof._at_chance(accuracies)[1] == holds
