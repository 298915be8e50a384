"""What a long training needs: accumulation, resume, early stop, several processes, LoRA on the vision tower."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainers.errors import UserError
from trainers.preference.batches import CosineMix, Epochs
from trainers.preference.pairs import Pair, accuracy
from trainers.preference.recipe import RewardTraining
from trainers.preference.stages import train_in_two_stages
from trainers.preference.train import train_reward
from trainers.ranks import Ranks
from trainers.rewards.identity import IdentityReward

pytestmark = pytest.mark.usefixtures("small_clips")
FAST = RewardTraining(steps=4, batch_size=6, learning_rate=3e-3, warmup=0.0, rank=4, alpha=8, dropout=0.0)
Weights = dict[str, torch.Tensor]


def weights(folder: Path) -> Weights:
    (checkpoint,) = folder.glob("checkpoint-*")
    return {
        name: value
        for file in ("adapter_model", "non_lora_state_dict")
        for name, value in load_file(checkpoint / f"{file}.safetensors").items()
    }


def difference(one: Weights, two: Weights) -> float:
    """Largest difference of two weights. Adam's steps are of the learning rate's size, 3e-3."""
    assert one.keys() == two.keys()
    return max((one[name] - two[name]).abs().max().item() for name in one)


@pytest.fixture
def train(base_model: Path, bright_pairs: list[Pair], tmp_path: Path) -> Callable:
    """`train(name, **changes)`: the weights of a reward trained so."""

    def train(name: str, *, pairs=None, held_out=(), options=None, **changes) -> Weights:
        settings = replace(FAST, **changes)
        train_reward(base_model, pairs or bright_pairs, tmp_path / name, settings, held_out=held_out, **options or {})
        return weights(tmp_path / name)

    return train


def test_accumulated_gradients_are_those_of_one_batch(train: Callable) -> None:
    assert difference(train("whole", steps=1), train("parts", steps=1, micro_batch=4)) < 3e-4


def test_activations_that_are_computed_again_change_nothing(train: Callable) -> None:
    assert difference(train("kept", steps=1), train("recomputed", steps=1, recompute=True)) < 3e-4


class Interrupted(Exception):
    pass


def interrupt_after(step: int) -> Callable[[dict], None]:
    def on_event(event: dict) -> None:
        if event["step"] > step:
            raise Interrupted

    return on_event


def test_a_resumed_training_ends_as_one_that_was_not_interrupted(train: Callable, tmp_path: Path) -> None:
    """With dropout, and with the optimiser's moments."""
    once = train("once", dropout=0.3, steps=5)
    with pytest.raises(Interrupted):
        train("again", dropout=0.3, steps=5, save_every=2, options={"on_event": interrupt_after(2)})
    assert not list((tmp_path / "again").glob("checkpoint-*"))
    resumed = train("again", dropout=0.3, steps=5, save_every=2, options={"resume": True})
    assert difference(once, resumed) == 0
    assert not (tmp_path / "again" / "state").exists()


def test_an_interrupted_training_is_neither_lost_nor_mixed_with_another(train: Callable, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train("run", save_every=1, options={"on_event": interrupt_after(1)})
    with pytest.raises(UserError, match="has not ended; resume it"):
        train("run")
    with pytest.raises(UserError, match="other settings: learning_rate"):
        train("run", learning_rate=1e-3, options={"resume": True})
    with pytest.raises(UserError, match="no training to resume"):
        train("other", options={"resume": True})


class BesideAnother(Ranks):
    """One process of two, of which the other has another disk."""

    def gather_results(self, work):
        return [*super().gather_results(work), None]


def test_machines_without_a_shared_disk_resume_nothing(train: Callable) -> None:
    with pytest.raises(Interrupted):
        train("run", save_every=1, options={"on_event": interrupt_after(1)})
    with pytest.raises(UserError, match="machines find different checkpoints in .*: 000001, None; several machines"):
        train("run", options={"resume": True, "ranks": BesideAnother()})


def test_the_best_measurement_is_kept_and_training_ends_early(
    base_model: Path, bright_pairs: list[Pair], tmp_path: Path
) -> None:
    """Held-out labels that contradict the others: every step makes them worse."""
    wrong = [replace(pair, label=-pair.label) for pair in bright_pairs[:9]]
    settings = replace(FAST, steps=40, evaluate_every=2, patience=2)
    result = train_reward(base_model, bright_pairs, tmp_path / "reward", settings, held_out=wrong)
    assert (tmp_path / "reward" / f"checkpoint-{result.steps}").is_dir() and result.steps <= 6
    reward = IdentityReward.load(tmp_path / "reward", base_model)
    assert accuracy(reward, wrong).loss == pytest.approx(result.accuracy.loss, abs=1e-4)


def test_a_vision_tower_trained_by_lora_scores_from_its_files(
    base_model: Path, bright_pairs: list[Pair], tmp_path: Path
) -> None:
    settings = replace(FAST, vision="lora", steps=8)
    result = train_reward(base_model, bright_pairs, tmp_path / "reward", settings, held_out=bright_pairs[:9])
    names = weights(tmp_path / "reward").keys()
    assert any("visual.blocks.0.attn.qkv.lora_A" in name for name in names)
    assert not any("visual.blocks" in name and "lora_" not in name for name in names)
    reward = IdentityReward.load(tmp_path / "reward", base_model)
    assert accuracy(reward, bright_pairs[:9]).loss == pytest.approx(result.accuracy.loss, abs=1e-4)


def test_a_training_starts_from_a_reward(train: Callable, tmp_path: Path) -> None:
    first = train("first", steps=3)
    again = train("again", steps=1, learning_rate=1e-9, options={"start": tmp_path / "first"})
    assert difference(first, again) < 1e-7


def test_a_reward_of_another_rank_is_no_start(train: Callable, tmp_path: Path) -> None:
    train("first", steps=1, rank=8)
    with pytest.raises(UserError, match="which this training does not have"):
        train("again", options={"start": tmp_path / "first"})


def test_the_written_names_are_those_of_the_published_code(
    repository: Path, bright_pairs: list[Pair], tmp_path: Path
) -> None:
    """Which wrote the golden case. It keeps the token embedding in the adapter's file as well."""
    case = repository / "tests" / "golden" / "identity_reward"
    settings = replace(FAST, steps=1, batch_size=2, pickled=True)
    train_reward(case / "base_model", bright_pairs[:2], tmp_path / "reward", settings)
    ours, theirs = tmp_path / "reward" / "checkpoint-1", case / "identity_reward" / "checkpoint-21"
    pickled, published = (torch.load(f / "non_lora_state_dict.pth", weights_only=True) for f in (ours, theirs))
    assert {k: v.shape for k, v in pickled.items()} == {k: v.shape for k, v in published.items()}
    adapters = [{k for k in load_file(f / "adapter_model.safetensors") if "lora_" in k} for f in (ours, theirs)]
    assert adapters[0] == adapters[1]
    written, released = (
        json.loads((f / "model_config.json").read_text(encoding="utf-8"))
        for f in (tmp_path / "reward", case / "identity_reward")
    )
    for section in ("data_config", "model_config", "peft_lora_config"):
        assert written[section].keys() <= released[section].keys()
    assert written["peft_lora_config"]["lora_namespan_exclude"] == ["lm_head", "rm_head", "embed_tokens", "visual"]
    assert {"meta_data", "data_dir"} <= written["data_config"].keys()


def test_every_epoch_has_all_pairs_in_an_order_of_its_own(bright_pairs: list[Pair]) -> None:
    source = Epochs(bright_pairs, 5, seed=1)
    epochs = [[id(p) for step in range(5 * e, 5 * e + 5) for p in source(step)] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(map(id, bright_pairs)) and epochs[0] != epochs[1]
    assert [id(p) for p in Epochs(bright_pairs, 5, seed=1)(7)] == [id(p) for p in source(7)]


def test_the_mix_goes_from_automatic_pairs_to_voted_ones(bright_pairs: list[Pair]) -> None:
    automatic, voted = (replace(bright_pairs[i], kind=name) for i, name in enumerate(("automatic", "voted")))
    mix = CosineMix([automatic], [voted], 40, steps=100, seed=0)
    shares = [sum(pair.kind == "automatic" for pair in mix(step)) / 40 for step in (0, 50, 100)]
    assert shares[0] == 1 and 0.3 < shares[1] < 0.7 and shares[2] == 0


def test_a_teacher_filters_the_automatic_pairs(base_model: Path, bright_pairs: list[Pair], tmp_path: Path) -> None:
    """Half of the automatic pairs have the wrong label: the teacher finds them."""
    wrong = [replace(pair, label=-pair.label) for pair in bright_pairs if pair.label]
    automatic = [pair for pair in bright_pairs if pair.label] + wrong

    def settings(pairs: int) -> RewardTraining:
        return replace(FAST, steps=10)

    done = train_in_two_stages(base_model, bright_pairs, automatic, tmp_path / "reward", settings, "cpu")
    assert (done.kept, done.automatic) == (len(wrong), 2 * len(wrong))
    assert accuracy(IdentityReward.load(tmp_path / "reward", base_model), bright_pairs).without_ties == 1.0
