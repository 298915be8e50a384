"""Reading the released layout, and what is said when it is not there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.errors import UserError
from trainers.rewards.checkpoint import find_base, find_checkpoint
from trainers.rewards.identity import IdentityReward


@pytest.fixture
def kit(repository: Path, tmp_path: Path) -> Path:
    """A copy of the golden reward and its base that a test may break."""
    source = repository / "tests" / "golden" / "identity_reward"
    for part in ("base_model", "identity_reward"):
        shutil.copytree(source / part, tmp_path / part)
    return tmp_path


def _set(path: Path, section: str, **values: object) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    (content[section] if section else content).update(values)
    path.write_text(json.dumps(content), encoding="utf-8")


def _score(reward: IdentityReward) -> float:
    clip = torch.arange(4 * 30 * 30 * 3).remainder(251).to(torch.uint8).view(4, 30, 30, 3)
    return reward.score([clip], [[clip[0]]]).item()


def test_the_newest_complete_checkpoint_is_taken(kit: Path) -> None:
    (kit / "identity_reward" / "checkpoint-100").mkdir()
    shutil.copytree(kit / "identity_reward" / "checkpoint-21", kit / "identity_reward" / "checkpoint-9")
    assert find_checkpoint(kit / "identity_reward").weights.name == "checkpoint-21"


def test_safetensors_stand_for_the_pickled_weights(kit: Path) -> None:
    before = _score(IdentityReward.load(kit / "identity_reward"))
    folder = kit / "identity_reward" / "checkpoint-21"
    weights = torch.load(folder / "non_lora_state_dict.pth", weights_only=True)
    save_file({k: v.clone() for k, v in weights.items()}, folder / "non_lora_state_dict.safetensors")
    (folder / "non_lora_state_dict.pth").unlink()
    assert _score(IdentityReward.load(kit / "identity_reward")) == before


def test_weights_named_by_newer_transformers_load_alike(kit: Path) -> None:
    """transformers 4.52 moved the tower and the language model one level down."""
    before = _score(IdentityReward.load(kit / "identity_reward"))
    folder = kit / "identity_reward" / "checkpoint-21"

    def renamed(key: str) -> str:
        key = key.replace("base_model.model.model.", "base_model.model.model.language_model.")
        return key.replace("base_model.model.visual.", "base_model.model.model.visual.")

    weights = torch.load(folder / "non_lora_state_dict.pth", weights_only=True)
    torch.save({renamed(k): v for k, v in weights.items()}, folder / "non_lora_state_dict.pth")
    adapter = load_file(folder / "adapter_model.safetensors")
    save_file({renamed(k): v for k, v in adapter.items()}, folder / "adapter_model.safetensors")
    assert _score(IdentityReward.load(kit / "identity_reward")) == before


def test_the_base_is_found_above_beside_or_where_one_says(kit: Path) -> None:
    checkpoint = find_checkpoint(kit / "identity_reward")
    assert find_base(checkpoint) == kit / "base_model"
    shutil.move(kit / "base_model", kit / "identity_reward" / "base_model")
    assert find_base(checkpoint) == kit / "identity_reward" / "base_model"
    shutil.move(kit / "identity_reward" / "base_model", kit / "elsewhere")
    assert find_base(checkpoint, kit / "elsewhere") == kit / "elsewhere"
    with pytest.raises(UserError, match="'base_model'.*not on this machine"):
        find_base(checkpoint)


def test_a_base_on_the_hub_is_not_fetched(kit: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    _set(kit / "identity_reward" / "model_config.json", "model_config", model_name_or_path="Nobody/No-Such-Model-3B")
    with pytest.raises(UserError, match="hf download Nobody/No-Such-Model-3B"):
        IdentityReward.load(kit / "identity_reward")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("identity_reward/model_config.json", "model_config.json is missing"),
        ("identity_reward/checkpoint-21/adapter_model.safetensors", "no checkpoint-N with adapter_model.safetensors"),
        ("identity_reward/checkpoint-21/adapter_config.json", "adapter_config.json is missing"),
        ("identity_reward/checkpoint-21/non_lora_state_dict.pth", "no non_lora_state_dict.pth"),
        ("base_model/config.json", "not on this machine"),
        ("base_model/tokenizer.json", "no tokenizer.json"),
        ("base_model/model.safetensors", "cannot be loaded"),
    ],
)
def test_a_missing_file_is_named(kit: Path, missing: str, said: str) -> None:
    (kit / missing).unlink()
    with pytest.raises(UserError, match=said):
        IdentityReward.load(kit / "identity_reward")


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "non_lora_state_dict.pth"])
def test_a_damaged_file_is_named(kit: Path, name: str) -> None:
    path = kit / "identity_reward" / "checkpoint-21" / name
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=name):
        IdentityReward.load(kit / "identity_reward")


def test_code_in_a_pickle_is_not_run(kit: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (kit / "owned",))

    torch.save({"base_model.model.rm_head.weight": Evil()}, kit / "identity_reward" / "checkpoint-21" / "non_lora_state_dict.pth")
    with pytest.raises(UserError, match="non_lora_state_dict.pth"):
        IdentityReward.load(kit / "identity_reward")
    assert not (kit / "owned").exists()


def test_a_checkpoint_of_another_base_is_refused(kit: Path, base_model: Path) -> None:
    with pytest.raises(UserError, match="base model it was trained on"):
        IdentityReward.load(kit / "identity_reward", base_model=base_model)


def test_a_lora_of_another_kind_is_refused(kit: Path) -> None:
    _set(kit / "identity_reward" / "checkpoint-21" / "adapter_config.json", "", use_dora=True)
    with pytest.raises(UserError, match="use_dora"):
        IdentityReward.load(kit / "identity_reward")


def test_a_checkpoint_without_head_is_no_reward(kit: Path) -> None:
    path = kit / "identity_reward" / "checkpoint-21" / "non_lora_state_dict.pth"
    weights = torch.load(path, weights_only=True)
    del weights["base_model.model.rm_head.weight"]
    torch.save(weights, path)
    with pytest.raises(UserError, match="rm_head"):
        IdentityReward.load(kit / "identity_reward")


def test_another_kind_of_base_is_refused(kit: Path) -> None:
    (kit / "base_model" / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(UserError, match="stand on Qwen2.5-VL"):
        IdentityReward.load(kit / "identity_reward")
