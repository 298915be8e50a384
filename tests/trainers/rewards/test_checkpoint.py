"""Finding and reading a reward in the released layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.errors import UserError
from trainers.rewards.folder import find_base, find_checkpoint
from trainers.rewards.identity import IdentityReward

from .edits import drop_tensors, edit_json, edit_tensors


def _score(reward: IdentityReward) -> float:
    clip = torch.arange(4 * 30 * 30 * 3).remainder(251).to(torch.uint8).view(4, 30, 30, 3)
    return reward.score([clip], [[clip[0]]]).item()


def test_the_newest_complete_checkpoint_is_taken(released: Path) -> None:
    (released / "identity_reward" / "checkpoint-100").mkdir()
    shutil.copytree(released / "identity_reward" / "checkpoint-21", released / "identity_reward" / "checkpoint-9")
    assert find_checkpoint(released / "identity_reward").weights.name == "checkpoint-21"


def test_safetensors_stand_for_the_pickled_weights(released: Path) -> None:
    before = _score(IdentityReward.load(released / "identity_reward"))
    folder = released / "identity_reward" / "checkpoint-21"
    weights = torch.load(folder / "non_lora_state_dict.pth", weights_only=True)
    save_file({k: v.clone() for k, v in weights.items()}, folder / "non_lora_state_dict.safetensors")
    (folder / "non_lora_state_dict.pth").unlink()
    assert _score(IdentityReward.load(released / "identity_reward")) == before


def test_weights_named_by_newer_transformers_load_alike(released: Path) -> None:
    """transformers 4.52 moved the tower and the language model one level down."""
    before = _score(IdentityReward.load(released / "identity_reward"))
    folder = released / "identity_reward" / "checkpoint-21"

    def renamed(key: str) -> str:
        key = key.replace("base_model.model.model.", "base_model.model.model.language_model.")
        return key.replace("base_model.model.visual.", "base_model.model.model.visual.")

    weights = torch.load(folder / "non_lora_state_dict.pth", weights_only=True)
    torch.save({renamed(k): v for k, v in weights.items()}, folder / "non_lora_state_dict.pth")
    adapter = load_file(folder / "adapter_model.safetensors")
    save_file({renamed(k): v for k, v in adapter.items()}, folder / "adapter_model.safetensors")
    assert _score(IdentityReward.load(released / "identity_reward")) == before


@pytest.mark.parametrize("wrapped", ["module.{}", "_orig_mod.{}", "module._orig_mod.{}"])
def test_prefixes_of_wrappers_are_stripped(released: Path, wrapped: str) -> None:
    before = _score(IdentityReward.load(released / "identity_reward"))
    for file in ("adapter_model.safetensors", "non_lora_state_dict.pth"):
        path = released / "identity_reward" / "checkpoint-21" / file
        edit_tensors(path, lambda content: {wrapped.format(key): value for key, value in content.items()})
    assert _score(IdentityReward.load(released / "identity_reward")) == before


def test_the_base_is_found_above_beside_or_where_one_says(released: Path) -> None:
    checkpoint = find_checkpoint(released / "identity_reward")
    assert find_base(checkpoint) == released / "base_model"
    shutil.move(released / "base_model", released / "identity_reward" / "base_model")
    assert find_base(checkpoint) == released / "identity_reward" / "base_model"
    shutil.move(released / "identity_reward" / "base_model", released / "elsewhere")
    assert find_base(checkpoint, released / "elsewhere") == released / "elsewhere"
    with pytest.raises(UserError, match="'base_model'.*not on this machine"):
        find_base(checkpoint)


def test_a_base_on_the_hub_is_not_fetched(released: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    edit_json(
        released / "identity_reward" / "model_config.json", "model_config", model_name_or_path="Nobody/No-Such-Model-3B"
    )
    with pytest.raises(UserError, match="hf download Nobody/No-Such-Model-3B"):
        IdentityReward.load(released / "identity_reward")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("identity_reward/model_config.json", "model_config.json is missing"),
        ("identity_reward/checkpoint-21/adapter_model.safetensors", "no checkpoint-N with adapter_model.safetensors"),
        ("identity_reward/checkpoint-21/adapter_config.json", "adapter_config.json is missing"),
        ("identity_reward/checkpoint-21/non_lora_state_dict.pth", "no non_lora_state_dict.pth"),
        ("base_model/config.json", "not on this machine"),
        ("base_model/tokenizer.json", "tokenizer.json is missing"),
        ("base_model/model.safetensors", "cannot be loaded"),
    ],
)
def test_a_missing_file_is_named(released: Path, missing: str, said: str) -> None:
    (released / missing).unlink()
    with pytest.raises(UserError, match=said):
        IdentityReward.load(released / "identity_reward")


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere cannot be opened"):
        find_checkpoint(tmp_path / "nowhere")


def test_a_checkpoint_of_another_base_is_refused(released: Path, base_model: Path) -> None:
    with pytest.raises(UserError, match="base model it was trained on"):
        IdentityReward.load(released / "identity_reward", base_model=base_model)


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "layers.1.self_attn.k_proj.bias",
        "model.norm.weight",
        "visual.patch_embed.proj.weight",
    ],
)
def test_a_base_that_lacks_a_tensor_is_refused(released: Path, name: str) -> None:
    """transformers would fill it with noise and only log that."""
    drop_tensors(released / "base_model" / "model.safetensors", name)
    with pytest.raises(
        UserError, match=f"base_model is not a complete Qwen2_5_VL.*lacks .*{name.removeprefix('model.')}"
    ):
        IdentityReward.load(released / "identity_reward")


def test_a_base_that_lacks_a_shard_is_refused(released: Path) -> None:
    folder = released / "base_model"
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = {f"model-0000{i + 1}-of-00002.safetensors": dict(list(weights.items())[i::2]) for i in range(2)}
    for file, part in shards.items():
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    IdentityReward.load(released / "identity_reward")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors"):
        IdentityReward.load(released / "identity_reward")


def test_heads_that_no_reward_uses_may_be_there_or_not(released: Path) -> None:
    before = _score(IdentityReward.load(released / "identity_reward"))
    heads = {name: torch.ones(1075, 64) for name in ("lm_head.weight", "score.weight")}
    edit_tensors(released / "base_model" / "model.safetensors", lambda tensors: tensors | heads)
    assert _score(IdentityReward.load(released / "identity_reward")) == before
    drop_tensors(released / "base_model" / "model.safetensors", *heads)
    edit_json(released / "base_model" / "config.json", "", tie_word_embeddings=False)
    drop_tensors(released / "identity_reward" / "checkpoint-21" / "adapter_model.safetensors", "lm_head.weight")
    assert _score(IdentityReward.load(released / "identity_reward")) == before


@pytest.mark.parametrize(
    "name",
    ["visual.patch_embed.proj.weight", "visual.blocks.1.attn.qkv.bias", "visual.merger.mlp.2.weight", "rm_head.weight"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused(released: Path, suffix: str, name: str) -> None:
    path = released / "identity_reward" / "checkpoint-21" / "non_lora_state_dict.pth"
    if suffix == ".safetensors":
        save_file({k: v.clone() for k, v in torch.load(path, weights_only=True).items()}, path.with_suffix(suffix))
        path.unlink()
    drop_tensors(path.with_suffix(suffix), name)
    with pytest.raises(UserError, match=f"checkpoint-21 .*{name}"):
        IdentityReward.load(released / "identity_reward")


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
def test_a_checkpoint_that_lacks_a_factor_is_refused(released: Path, lost: tuple[str, ...], listed: bool) -> None:
    """Whether its configuration lists the modules or describes them by a pattern."""
    path = released / "identity_reward" / "checkpoint-21" / "adapter_model.safetensors"
    if not listed:
        edit_json(path.with_name("adapter_config.json"), "", target_modules=".*_proj")
    drop_tensors(path, *(f"layers.1.mlp.up_proj.{factor}.weight" for factor in lost))
    with pytest.raises(UserError, match="checkpoint-21 .*layers.1.mlp.up_proj"):
        IdentityReward.load(released / "identity_reward")


def test_the_token_embedding_may_be_in_either_file_but_not_in_none(released: Path) -> None:
    before = _score(IdentityReward.load(released / "identity_reward"))
    folder = released / "identity_reward" / "checkpoint-21"
    drop_tensors(folder / "adapter_model.safetensors", "embed_tokens.weight")
    assert _score(IdentityReward.load(released / "identity_reward")) == before
    drop_tensors(folder / "non_lora_state_dict.pth", "embed_tokens.weight")
    with pytest.raises(UserError, match="checkpoint-21 .*embed_tokens"):
        IdentityReward.load(released / "identity_reward")


def test_a_tower_that_was_not_trained_need_not_be_in_the_checkpoint(released: Path) -> None:
    path, config = (
        released / "identity_reward" / "checkpoint-21" / "non_lora_state_dict.pth",
        released / "identity_reward" / "model_config.json",
    )
    edit_json(config, "model_config", freeze_vision_tower=True)
    edit_tensors(path, lambda tensors: {k: v for k, v in tensors.items() if "visual." not in k or "merger" in k})
    IdentityReward.load(released / "identity_reward")
    edit_tensors(path, lambda tensors: {k: v for k, v in tensors.items() if "visual." not in k})
    with pytest.raises(UserError, match="checkpoint-21 .*visual.merger"):
        IdentityReward.load(released / "identity_reward")
    edit_json(config, "model_config", tune_merger=False)
    IdentityReward.load(released / "identity_reward")


WEIGHTS = "model.safetensors"

# --- all weights in one file -----------------------------------------------------------------------------------------


def _single_state(released: Path) -> dict[str, torch.Tensor]:
    """What the trainer's PEFT model has as its state: base layers, factors, and all that was trained in full."""
    checkpoint = released / "identity_reward" / "checkpoint-21"
    adapter = load_file(checkpoint / "adapter_model.safetensors")
    state = {f"base_model.model.{key}": value for key, value in load_file(released / "base_model" / WEIGHTS).items()}
    state |= torch.load(checkpoint / "non_lora_state_dict.pth", weights_only=True)
    for key, value in adapter.items():
        if "lora_" in key:
            module = key.split(".lora_")[0]
            if (weight := f"{module}.weight") in state:
                state[f"{module}.base_layer.weight"] = state.pop(weight)
            state[key.replace(".weight", ".default.weight")] = value
    assert any("base_layer" in key for key in state)
    return state


@pytest.mark.parametrize("place", ["checkpoint-21", "."])
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_all_weights_in_one_file_score_alike(released: Path, place: str, name: str) -> None:
    before = _score(IdentityReward.load(released / "identity_reward"))
    state = _single_state(released)
    shutil.rmtree(released / "identity_reward" / "checkpoint-21")
    folder = released / "identity_reward" / place
    folder.mkdir(exist_ok=True)
    if name.endswith(".pth"):
        torch.save(state, folder / name)
    else:
        save_file({key: value.clone().contiguous() for key, value in state.items()}, folder / name)
    for source in (released / "identity_reward", folder / name):
        assert _score(IdentityReward.load(source)) == pytest.approx(before, abs=1e-5)


def test_one_file_that_lacks_the_tower_is_refused(released: Path) -> None:
    state = {key: value for key, value in _single_state(released).items() if "visual.blocks.0" not in key}
    shutil.rmtree(released / "identity_reward" / "checkpoint-21")
    torch.save(state, released / "identity_reward" / "model.pth")
    with pytest.raises(UserError, match="not a complete identity reward: it lacks visual.blocks.0"):
        IdentityReward.load(released / "identity_reward")


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (None, "holds .*lora_A.* has no peft_lora_config with lora_r and lora_alpha"),
        ({"lora_r": 4}, "peft_lora_config: `lora_alpha` is missing"),
        ({"lora_r": 4, "lora_alpha": 8, "use_rslora": True}, "`use_rslora` is True"),
        ({"lora_r": 8, "lora_alpha": 8}, "does not fit the rank 8"),
    ],
)
def test_one_file_needs_the_scale_of_its_lora(released: Path, section: dict | None, said: str) -> None:
    state = _single_state(released)
    shutil.rmtree(released / "identity_reward" / "checkpoint-21")
    torch.save(state, released / "identity_reward" / "model.pth")
    edit_json(released / "identity_reward" / "model_config.json", peft_lora_config=section)
    with pytest.raises(UserError, match=said):
        IdentityReward.load(released / "identity_reward")


def test_an_adapter_is_taken_before_one_file(released: Path) -> None:
    (released / "identity_reward" / "checkpoint-21" / "model.pth").write_bytes(b"half a download")
    assert find_checkpoint(released / "identity_reward").single is None
