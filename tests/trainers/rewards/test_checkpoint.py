"""Reading the released layout, and what is said when it is not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

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

    torch.save(
        {"base_model.model.rm_head.weight": Evil()},
        kit / "identity_reward" / "checkpoint-21" / "non_lora_state_dict.pth",
    )
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


def _rewrite(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Change the tensors of a file in either format."""
    if path.suffix == ".pth":
        torch.save(change(torch.load(path, weights_only=True)), path)
    else:
        save_file(change(load_file(path)), path, metadata={"format": "pt"})


def _drop(path: Path, *names: str) -> None:
    """Take tensors out whose names end so."""

    def without(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        left = {k: v for k, v in tensors.items() if not k.endswith(names)}
        assert len(tensors) - len(left) == len(names)
        return left

    _rewrite(path, without)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "layers.1.self_attn.k_proj.bias",
        "model.norm.weight",
        "visual.patch_embed.proj.weight",
    ],
)
def test_a_base_that_lacks_a_tensor_is_refused(kit: Path, name: str) -> None:
    """transformers would fill it with noise and only log that."""
    _drop(kit / "base_model" / "model.safetensors", name)
    with pytest.raises(
        UserError, match=f"base_model is not a complete Qwen2_5_VL.*lacks .*{name.removeprefix('model.')}"
    ):
        IdentityReward.load(kit / "identity_reward")


def test_a_base_that_lacks_a_shard_is_refused(kit: Path) -> None:
    folder = kit / "base_model"
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {f"model-0000{i + 1}-of-00002.safetensors": dict(list(weights.items())[i::2]) for i in range(2)}
    for file, part in shards.items():
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    IdentityReward.load(kit / "identity_reward")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors"):
        IdentityReward.load(kit / "identity_reward")


def test_a_damaged_or_misshapen_base_is_refused(kit: Path) -> None:
    path = kit / "base_model" / "model.safetensors"
    whole = path.read_bytes()
    _rewrite(path, lambda tensors: tensors | {"model.norm.weight": torch.zeros(5)})
    with pytest.raises(UserError, match="cannot be loaded"):
        IdentityReward.load(kit / "identity_reward")
    path.write_bytes(whole[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        IdentityReward.load(kit / "identity_reward")


def test_heads_that_no_reward_uses_may_be_there_or_not(kit: Path) -> None:
    before = _score(IdentityReward.load(kit / "identity_reward"))
    heads = {name: torch.ones(1075, 64) for name in ("lm_head.weight", "score.weight")}
    _rewrite(kit / "base_model" / "model.safetensors", lambda tensors: tensors | heads)
    assert _score(IdentityReward.load(kit / "identity_reward")) == before
    _drop(kit / "base_model" / "model.safetensors", *heads)
    _set(kit / "base_model" / "config.json", "", tie_word_embeddings=False)
    _drop(kit / "identity_reward" / "checkpoint-21" / "adapter_model.safetensors", "lm_head.weight")
    assert _score(IdentityReward.load(kit / "identity_reward")) == before


@pytest.mark.parametrize(
    "name",
    ["visual.patch_embed.proj.weight", "visual.blocks.1.attn.qkv.bias", "visual.merger.mlp.2.weight", "rm_head.weight"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused(kit: Path, suffix: str, name: str) -> None:
    path = kit / "identity_reward" / "checkpoint-21" / "non_lora_state_dict.pth"
    if suffix == ".safetensors":
        save_file({k: v.clone() for k, v in torch.load(path, weights_only=True).items()}, path.with_suffix(suffix))
        path.unlink()
    _drop(path.with_suffix(suffix), name)
    with pytest.raises(UserError, match=f"checkpoint-21 .*{name}"):
        IdentityReward.load(kit / "identity_reward")


@pytest.mark.parametrize(
    ("lost", "listed"),
    [
        (("lora_A",), True),
        (("lora_B",), True),
        (("lora_A", "lora_B"), True),
        (("lora_A",), False),
        (("lora_B",), False),
    ],
)
def test_a_checkpoint_that_lacks_a_factor_is_refused(kit: Path, lost: tuple[str, ...], listed: bool) -> None:
    """Whether its configuration lists the modules or describes them by a pattern."""
    path = kit / "identity_reward" / "checkpoint-21" / "adapter_model.safetensors"
    if not listed:
        _set(path.with_name("adapter_config.json"), "", target_modules=".*_proj")
    _drop(path, *(f"layers.1.mlp.up_proj.{factor}.weight" for factor in lost))
    with pytest.raises(UserError, match="checkpoint-21 .*layers.1.mlp.up_proj"):
        IdentityReward.load(kit / "identity_reward")


def test_the_token_embedding_may_be_in_either_file_but_not_in_none(kit: Path) -> None:
    before = _score(IdentityReward.load(kit / "identity_reward"))
    folder = kit / "identity_reward" / "checkpoint-21"
    _drop(folder / "adapter_model.safetensors", "embed_tokens.weight")
    assert _score(IdentityReward.load(kit / "identity_reward")) == before
    _drop(folder / "non_lora_state_dict.pth", "embed_tokens.weight")
    with pytest.raises(UserError, match="checkpoint-21 .*embed_tokens"):
        IdentityReward.load(kit / "identity_reward")


def test_a_tower_that_was_not_trained_need_not_be_in_the_checkpoint(kit: Path) -> None:
    path, config = (
        kit / "identity_reward" / "checkpoint-21" / "non_lora_state_dict.pth",
        kit / "identity_reward" / "model_config.json",
    )
    _set(config, "model_config", freeze_vision_tower=True)
    _rewrite(path, lambda tensors: {k: v for k, v in tensors.items() if "visual." not in k or "merger" in k})
    IdentityReward.load(kit / "identity_reward")
    _rewrite(path, lambda tensors: {k: v for k, v in tensors.items() if "visual." not in k})
    with pytest.raises(UserError, match="checkpoint-21 .*visual.merger"):
        IdentityReward.load(kit / "identity_reward")
    _set(config, "model_config", tune_merger=False)
    IdentityReward.load(kit / "identity_reward")


def test_another_kind_of_base_is_refused(kit: Path) -> None:
    (kit / "base_model" / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    with pytest.raises(UserError, match="stand on Qwen2.5-VL"):
        IdentityReward.load(kit / "identity_reward")
