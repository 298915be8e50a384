"""Training a reward: it learns, is reproducible, and scores from its files as it did in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.errors import UserError
from trainers.preference.pairs import Pair, accuracy
from trainers.preference.train import RewardTraining, train_base, train_reward
from trainers.rewards.identity import IdentityReward

pytestmark = pytest.mark.usefixtures("small_clips")
FAST = RewardTraining(steps=8, batch_size=4, learning_rate=3e-3, warmup=0.0, rank=4, alpha=8)


def _scores(folder: Path, base: Path, pairs: list[Pair]) -> torch.Tensor:
    return IdentityReward.load(folder, base).score([p.video_a for p in pairs[:6]], [p.references for p in pairs[:6]])


@pytest.mark.parametrize("sign", [1, -1], ids=["bright is better", "dark is better"])
def test_a_reward_learns_which_clip_is_better(
    base_model: Path, bright_pairs: list[Pair], tmp_path: Path, sign: int
) -> None:
    """Either way round, which no random network satisfies."""
    pairs = [replace(p, label=sign * p.label) for p in bright_pairs]
    result = train_reward(base_model, pairs, tmp_path / "reward", replace(FAST, steps=16), held_out=pairs[:9])
    assert result.accuracy.without_ties == 1.0
    assert result.loss < 0.7


def test_the_file_scores_what_the_trained_model_scored(
    base_model: Path, bright_pairs: list[Pair], tmp_path: Path
) -> None:
    """Also in half precision: the model is rounded to what is stored before it is measured."""
    training = replace(FAST, storage=torch.float16)
    result = train_reward(base_model, bright_pairs, tmp_path / "reward", training, held_out=bright_pairs)
    found = accuracy(IdentityReward.load(tmp_path / "reward", base_model), bright_pairs)
    assert found.loss == pytest.approx(result.accuracy.loss, rel=1e-6)
    assert replace(found, loss=0) == replace(result.accuracy, loss=0)


def test_only_lora_touches_the_language_model(base_model: Path, bright_pairs: list[Pair], tmp_path: Path) -> None:
    train_reward(base_model, bright_pairs, tmp_path / "reward", replace(FAST, steps=2))
    folder = tmp_path / "reward" / "checkpoint-2"
    adapter, full = (
        load_file(folder / "adapter_model.safetensors"),
        load_file(folder / "non_lora_state_dict.safetensors"),
    )
    assert len(adapter) == 2 * 7 * 2
    assert all(".layers." in k and k.startswith("base_model.model.model.") for k in adapter)
    assert not any(".layers." in k for k in full)
    assert {"base_model.model.rm_head.weight", "base_model.model.model.embed_tokens.weight"} <= set(full)
    base = load_file(base_model / "model.safetensors")
    changed = full["base_model.model.visual.patch_embed.proj.weight"] != base["visual.patch_embed.proj.weight"]
    assert changed.any()
    assert any(v.abs().max() > 0 for k, v in adapter.items() if "lora_B" in k)


def test_the_layout_is_the_released_one(base_model: Path, bright_pairs: list[Pair], tmp_path: Path) -> None:
    train_reward(base_model, bright_pairs, tmp_path / "reward", replace(FAST, steps=1))
    config = json.loads((tmp_path / "reward" / "model_config.json").read_text(encoding="utf-8"))
    assert config["data_config"]["num_frames"] == 5.0
    assert config["model_config"]["loss_type"] == "btt" and config["peft_lora_config"]["lora_r"] == 4
    described = json.loads((tmp_path / "reward" / "checkpoint-1" / "adapter_config.json").read_text(encoding="utf-8"))
    assert described["r"] == 4 and "model.layers.0.self_attn.q_proj" in described["target_modules"]


def test_a_base_beside_the_reward_is_named_without_its_path(base_model: Path, bright_pairs: list[Pair]) -> None:
    folder = base_model.parent / "identity_reward"
    train_reward(base_model, bright_pairs, folder, replace(FAST, steps=1))
    config = json.loads((folder / "model_config.json").read_text(encoding="utf-8"))
    assert config["model_config"]["model_name_or_path"] == "base_model"
    assert torch.isfinite(
        IdentityReward.load(folder).score([bright_pairs[0].video_a], [bright_pairs[0].references])
    ).all()


def test_the_same_seed_gives_the_same_reward(base_model: Path, bright_pairs: list[Pair], tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        train_reward(base_model, bright_pairs, tmp_path / name, replace(FAST, steps=3, seed=seed))
    one, again, other = (_scores(tmp_path / name, base_model, bright_pairs) for name in ("one", "again", "other"))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_a_stream_of_batches_trains_until_the_steps_are_done(
    base_model: Path, bright_pairs: list[Pair], tmp_path: Path
) -> None:
    stream = iter(lambda: bright_pairs[:4], None)
    assert train_reward(base_model, stream, tmp_path / "reward", replace(FAST, steps=3)).steps == 3


def test_the_time_budget_ends_training(base_model: Path, bright_pairs: list[Pair], tmp_path: Path) -> None:
    result = train_reward(base_model, bright_pairs, tmp_path / "reward", replace(FAST, steps=10**6, seconds=0.5))
    assert 0 < result.steps < 10**4
    assert (tmp_path / "reward" / f"checkpoint-{result.steps}").is_dir()


def test_a_trained_base_becomes_the_base_of_a_reward(
    base_model: Path, bright_pairs: list[Pair], tmp_path: Path
) -> None:
    train_base(base_model, bright_pairs, tmp_path / "base_model", replace(FAST, steps=2))
    before, after = (load_file(folder / "model.safetensors") for folder in (base_model, tmp_path / "base_model"))
    name = "model.layers.0.mlp.up_proj.weight"
    assert set(before) == set(after) and not torch.equal(before[name], after[name])
    train_reward(tmp_path / "base_model", bright_pairs, tmp_path / "reward", replace(FAST, steps=1))
    assert torch.isfinite(_scores(tmp_path / "reward", tmp_path / "base_model", bright_pairs)).all()


def test_a_folder_with_a_reward_is_not_written_over(base_model: Path, bright_pairs: list[Pair], tmp_path: Path) -> None:
    train_reward(base_model, bright_pairs, tmp_path / "reward", replace(FAST, steps=1))
    for train in (train_reward, train_base):
        with pytest.raises(UserError, match="already holds checkpoint-1"):
            train(base_model, bright_pairs, tmp_path / "reward", replace(FAST, steps=1))


def test_a_file_or_a_reward_in_one_file_is_not_written_over(
    base_model: Path, bright_pairs: list[Pair], tmp_path: Path
) -> None:
    (tmp_path / "model_config.json").write_text("{}")
    for place, problem in ((tmp_path / "model_config.json", "is a file"), (tmp_path, "holds model_config.json")):
        with pytest.raises(UserError, match=problem):
            train_reward(base_model, bright_pairs, place, replace(FAST, steps=1))
    assert (tmp_path / "model_config.json").read_text() == "{}"


@pytest.mark.parametrize("train", [train_reward, train_base])
@pytest.mark.parametrize("observed", [False, True])
def test_a_loss_that_is_not_finite_writes_nothing(
    base_model: Path, bright_pairs: list[Pair], tmp_path: Path, train: Callable, observed: bool
) -> None:
    """However short the training is, and whether or not its events are observed."""
    base = Path(shutil.copytree(base_model, tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"].fill_(3e38)  # finite, but both rewards of a pair are not
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    events = [] if observed else None
    with pytest.raises(UserError, match=f"NaN or infinite within {1 if observed else 2} steps; lower"):
        train(
            base, bright_pairs, tmp_path / "out", replace(FAST, steps=2), on_event=events.append if observed else None
        )
    assert not (tmp_path / "out").exists()
    assert not events


def test_a_training_that_diverges_stops_before_its_end(
    base_model: Path, bright_pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.preference.train.CHECK_EVERY", 2)
    training = replace(FAST, steps=10**6, learning_rate=1e20, max_grad_norm=1e9, batch_size=1)
    with pytest.raises(UserError, match=r"within \d steps; lower the learning rate"):
        train_reward(base_model, bright_pairs, tmp_path / "out", training)


def test_weights_that_the_files_cannot_hold_are_not_written(
    base_model: Path, bright_pairs: list[Pair], tmp_path: Path
) -> None:
    """One step of 1e6 is finite in float32, but infinite in float16."""
    training = replace(FAST, steps=1, learning_rate=1e6, storage=torch.float16)
    with pytest.raises(UserError, match="became infinite"):
        train_reward(base_model, bright_pairs, tmp_path / "out", training)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_writing_leaves_no_reward(
    base_model: Path, bright_pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def save_once(*args, **kwargs):
        if written:
            raise KeyboardInterrupt
        written.append(save_file(*args, **kwargs))

    monkeypatch.setattr("trainers.rewards.writing.save_file", save_once)
    with pytest.raises(KeyboardInterrupt):
        train_reward(base_model, bright_pairs, tmp_path / "out", replace(FAST, steps=1))
    assert written and list((tmp_path / "out").iterdir()) == []


def test_no_pairs_are_refused(base_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no preference pairs"):
        train_reward(base_model, [], tmp_path / "reward", FAST)


def test_pairs_from_several_places_train_together(base_model: Path, bright_pairs: list[Pair], tmp_path: Path) -> None:
    """Arrays, tensors and clips of another length in one batch."""
    other = replace(
        bright_pairs[0], video_a=bright_pairs[0].video_a.numpy(), references=[bright_pairs[0].references[0].numpy()]
    )
    longer = replace(bright_pairs[1], video_a=bright_pairs[1].video_a.repeat(2, 1, 1, 1), fps=20.0)
    result = train_reward(
        base_model, [other, longer, bright_pairs[2]], tmp_path / "reward", replace(FAST, steps=1, batch_size=3)
    )
    assert result.loss > 0
