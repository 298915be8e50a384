"""The node that trains a reward from votes: when it starts a run, with what, and what it gives to the graph."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from trainers.config import RewardConfig
from trainers.preference.folder import PairFolder
from trainers.rewards.load import load_reward
from trainers.runs.folder import RunFolder

NODE = "IdentityGRPOTrainReward"


def ours(name: str):
    """A module of the pack, which is loaded under a name of its own."""
    return import_module(f"identity_grpo.{name}")


@pytest.fixture
def output(pack, tmp_path, monkeypatch) -> Path:
    """ComfyUI's output folder, and the folder of runs, empty."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    monkeypatch.setattr(ours("nodes.folders"), "runs_root", lambda: tmp_path / "runs")
    return tmp_path / "identity_grpo_pairs"


@pytest.fixture
def votes(output) -> PairFolder:
    """Ten pairs of five people with votes, and one without."""
    folder, noise = PairFolder(output / "votes"), np.random.default_rng(0)

    def clip() -> np.ndarray:
        return noise.integers(0, 255, (3, 28, 28, 3), np.uint8)

    faces = [clip()[0] for _ in range(6)]
    for i in range(11):
        folder.add((clip(), clip()), [faces[i // 2]], fps=8.0, verdict="A" if i < 10 else None, who="anna")
    return folder


@pytest.fixture
def started(pack, monkeypatch) -> list[RunFolder]:
    """The runs that were started; their processes are not."""
    runs = []

    def start(run, **_):
        runs.append(run)
        run.set_status(state="stopped")

    monkeypatch.setattr(ours("trainers.runs.starting").launcher, "start", start)
    return runs


@pytest.fixture
def train(node_output, output):
    def train(**given):
        usual = {"pairs": "votes", "base_model": "TinyWorld (built in)", "start_reward": "none", "preset": "auto"}
        usual |= {"name": "taste", "epochs": 3.0, "least_votes": 8}
        return node_output(NODE, **usual | given)

    return train


def blocked(value) -> bool:
    return type(value).__name__ == "ExecutionBlocker"


def test_a_run_is_started_on_the_votes_that_are_there(train, votes, started):
    found = train()
    (run,) = started
    settings = run.settings()
    assert run.id.startswith("taste-") and run.kind == "reward" and settings.preset == "tiny"
    assert settings.pairs == str(votes.path) and settings.pairs_bytes == votes.voted_size()
    assert settings.iterations == 3 and settings.held_out == 0.15  # three epochs of eight pairs
    assert blocked(found.args[0]) and found.ui["identity_grpo_run"] == (run.id,)


def test_a_file_of_machines_says_where_it_trains_as_in_train(train, votes, monkeypatch, output):
    (output.parent / "machines").mkdir()
    (output.parent / "machines" / "two.yaml").write_text(
        "num_machines: 2\nnum_processes: 4\nmain_process_ip: head\nmain_process_port: 29500\nuse_cpu: true\n"
    )
    started = []
    monkeypatch.setattr(
        ours("trainers.runs.starting").launcher, "start", lambda run, **given: started.append((run, given))
    )
    train(machines="two.yaml")
    ((run, given),) = started
    assert run.kind == "reward" and given["machines"].rendezvous == "head:29500"
    assert (given["processes"], given["machines"].count, given["gpus"]) == (2, 2, ())


def test_the_output_of_vote_on_videos_is_the_same_folder(train, votes, started):
    train(pairs=str(votes.path))
    assert started[0].settings().pairs == str(votes.path)


def test_until_there_are_votes_enough_it_counts_them(train, votes, started):
    found = train(least_votes=11)
    assert blocked(found.args[0]) and "10 of 11 pairs have votes" in found.args[1] and not started


def test_the_reward_of_a_run_is_offered_once_it_is_trained(train, votes, started, repository):
    train()
    (run,) = started
    choice = f"{run.id}: best"
    assert choice not in ours("nodes.folders").reward_choices()
    shutil.copytree(repository / "tests" / "golden" / "identity_reward" / "identity_reward", run.reward_folder)
    run.set_status(state="finished")
    assert train().args[0] == choice and len(started) == 1
    assert ours("nodes.folders").reward_source(choice) == str(run.reward_folder)
    assert choice not in ours("nodes.folders").lora_choices() and run.id not in ours("nodes.folders").run_choices()


def test_the_editor_queues_again_at_the_end_of_a_run_that_trains(train, votes, started, monkeypatch):
    # Signed with this process: it is alive.
    monkeypatch.setattr(
        ours("trainers.runs.starting").launcher, "start", lambda run, **_: run.set_status(state="running")
    )
    found = train(queue_again="at the end")
    assert blocked(found.args[0]) and found.ui["queue_again"] == ("at the end",)
    assert "queue_again" not in train(queue_again="no").ui


def test_a_new_vote_changes_the_fingerprint_and_a_new_pair_does_not(pack, votes):
    node = pack.nodes[NODE]
    before = node.fingerprint_inputs(pairs="votes")
    clips = tuple(np.full((2, 28, 28, 3), level, np.uint8) for level in (1, 2))
    late = votes.add(clips, [clips[0][0]], fps=8.0)
    assert node.fingerprint_inputs(pairs="votes") == before
    votes.vote(late.pair, "B", "anna")
    assert node.fingerprint_inputs(pairs="votes") != before


@pytest.mark.parametrize(
    "given, problem",
    [
        ({"pairs": "../.."}, "no letter or digit"),
        ({"base_model": "qwen"}, "base_model `qwen` is not offered here"),
        ({"start_reward": "mine"}, "there is no reward `mine`"),
        ({"epochs": float("nan")}, "epochs nan is outside"),
        ({"preset": "fast"}, "preset `fast` is not offered here"),
        ({"machines": "two.yaml"}, "no file `two.yaml` in .*machines; put one there"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_what_cannot_be_trained_on_is_refused_before_a_run_is_made(pack, train, votes, started, given, problem):
    """Also what a link brings, which no list of the editor has checked."""
    with pytest.raises(pack.UserError, match=problem):
        train(**{name: pack.Linked(value) for name, value in given.items()})
    assert not started


def test_pairs_of_the_same_people_cannot_be_held_out(pack, train, output, started):
    folder = PairFolder(output / "votes")
    for i in range(8):
        clips = tuple(np.full((2, 28, 28, 3), 10 * i + side, np.uint8) for side in (0, 1))
        folder.add(clips, [np.zeros((28, 28, 3), np.uint8)], fps=8.0, verdict="A", who="anna")
    with pytest.raises(pack.UserError, match="none can be held out"):
        train()
    train(held_out=0.0)
    assert len(started) == 1


@pytest.fixture
def two_rewards(pack) -> tuple:
    """TinyWorld's reward as it is, and one that judges the opposite: (reward, its source) -> what Load Reward gives."""
    types, managed = ours("nodes.types"), ours("nodes.memory").Managed()

    def lazy(sign: float, source: str):
        def load():
            reward = load_reward(RewardConfig(source="tinyworld"), torch.device("cpu"))
            reward.model.rm_head.weight.data.mul_(sign)
            return reward, managed

        return types.LazyReward(RewardConfig(source=source), types.OnUse(load))

    return lazy


def test_an_old_and_a_new_reward_are_compared_on_the_pairs_that_the_run_held_out(
    train, votes, started, node_output, two_rewards
):
    train(held_out=0.3)
    (run,) = started
    votes.vote(next(iter(votes.read().pairs)), "B", "ben")  # a later vote is not of this run
    old, new = two_rewards(1.0, "tinyworld"), two_rewards(-1.0, str(run.reward_folder))
    found = node_output("IdentityGRPOCompareRewards", old=old, new=new, pairs_shown=6)
    board, text = found.args
    assert text.startswith(f"4 held-out pairs of {run.id}") and "they prefer different clips of 4 pairs" in text
    assert board.shape[1] > 4 * 100 and found.ui["text"] == (text,)


def test_what_no_run_here_has_trained_is_no_new_reward(pack, node_output, output, two_rewards):
    old, new = two_rewards(1.0, "tinyworld"), two_rewards(1.0, "tinyworld")
    with pytest.raises(pack.UserError, match="`new` is no reward of Train Reward"):
        node_output("IdentityGRPOCompareRewards", old=old, new=new)


def test_a_run_without_held_out_pairs_cannot_be_compared(pack, train, votes, started, node_output, two_rewards):
    train(held_out=0.0)
    new = two_rewards(1.0, str(started[0].reward_folder))
    with pytest.raises(pack.UserError, match="has held no pair out"):
        node_output("IdentityGRPOCompareRewards", old=two_rewards(1.0, "tinyworld"), new=new)
