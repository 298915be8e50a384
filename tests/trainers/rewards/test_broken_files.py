"""Broken and hostile files of a reward and of its base model are refused with a UserError that names the file."""

from __future__ import annotations

import ast
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainers.errors import UserError
from trainers.rewards.checkpoint import merge_weights, read_weights
from trainers.rewards.folder import find_checkpoint
from trainers.rewards.identity import IdentityReward, open_base

from .edits import edit_json, edit_tensors, set_tensor

REWARD = "identity_reward/model_config.json"
CONFIG = "identity_reward/checkpoint-21/adapter_config.json"
ADAPTER = "identity_reward/checkpoint-21/adapter_model.safetensors"
FULL = "identity_reward/checkpoint-21/non_lora_state_dict.pth"
BASE = "base_model/config.json"
TOKENS = "base_model/tokenizer.json"
WEIGHTS = "base_model/model.safetensors"
HEAD = "rm_head.weight"
Q, UP = "layers.1.self_attn.q_proj.lora_A.weight", "layers.1.self_attn.q_proj.lora_B.weight"
Break = Callable[[Path], Any]


def values(section: str = "", **changes: Any) -> Break:
    return lambda path: edit_json(path, section, **changes)


def text(content: str) -> Break:
    return lambda path: path.write_text(content, encoding="utf-8")


def tensor(ending: str, change: Callable[[Tensor], Tensor]) -> Break:
    return lambda path: set_tensor(path, ending, change)


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Break:
    return lambda path: edit_tensors(path, change)


def first_is(number: float) -> Callable[[Tensor], Tensor]:
    def change(value: Tensor) -> Tensor:
        value = value.clone()
        value.view(-1)[0] = number
        return value

    return change


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def compressed(path: Path) -> None:
    """The same archive deflated, with an entry of many zeros: small on disk, large in memory."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (entries | {"archive/zeros": bytes(10**7)}).items():
            archive.writestr(name, data)


def pipe(path: Path) -> None:
    """Reading it never ends while nobody writes."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no pipes in folders")
    path.unlink()
    os.mkfifo(path)


def sparse_file(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(2**25)


def legacy(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    torch.save(content, path, _use_new_zipfile_serialization=False)


def two_spellings(content: dict[str, Tensor]) -> dict[str, Tensor]:
    name = next(name for name in content if name.endswith(Q))
    return content | {name.replace(".lora_A.weight", ".lora_A.default.weight"): content[name].clone()}


def without_base_weights(path: Path) -> None:
    path.unlink()
    (path.parent / "model.safetensors.index.json").write_text('{"weight_map": [1, 2]}', encoding="utf-8")


JSON_FILES = {
    "a list for the configuration": (REWARD, text("[]"), "valid object|should be an object"),
    "text for the configuration": (REWARD, text("a reward"), "Invalid JSON"),
    "nested without end": (REWARD, text("[" * 100_000), "Invalid JSON"),
    "a list for a section": (REWARD, lambda p: edit_json(p, data_config=[1]), "data_config"),
    "text for a section": (REWARD, lambda p: edit_json(p, model_config="base"), "model_config"),
    "cut off": (REWARD, truncated, "Invalid JSON"),
    "not UTF-8": (REWARD, lambda p: p.write_bytes(b'{"a": "\xff\xfe"}'), "Invalid JSON"),
    "32 MiB": (REWARD, sparse_file, "larger than 16 MiB"),
    "a pipe": (REWARD, pipe, "is missing"),
    "text for the frames": (REWARD, values("data_config", num_frames="five"), "num_frames"),
    "NaN frames": (REWARD, values("data_config", num_frames=float("nan")), "num_frames"),
    "a third of a frame": (REWARD, values("data_config", num_frames=0.3), "num_frames"),
    "no frames": (REWARD, values("data_config", num_frames=0), "num_frames"),
    "a billion frames": (REWARD, values("data_config", num_frames=10**9), "num_frames"),
    "frames by rate": (REWARD, values("data_config", fps=2.0), "fps"),
    "text for a size": (REWARD, values("data_config", max_frame_pixels="399360"), "max_frame_pixels"),
    "a list for the base": (REWARD, values("model_config", model_name_or_path=["base_model"]), "model_name_or_path"),
    "an endless base": (REWARD, values("model_config", model_name_or_path="a" * 10**5), "model_name_or_path"),
    "a long base": (REWARD, values("model_config", model_name_or_path="a" * 400), "not on this machine"),
    "another machine": (REWARD, values("model_config", model_name_or_path="\\\\host\\share"), "another machine"),
    "text for a switch": (REWARD, values("model_config", freeze_vision_tower="no"), "freeze_vision_tower"),
    "three outputs": (REWARD, values("model_config", output_dim=3), "output_dim"),
    "another token": (REWARD, values("model_config", reward_token="last"), "reward_token"),
    "a list for the adapter": (CONFIG, text("[]"), "valid object|should be an object"),
    "no rank": (CONFIG, text('{"peft_type": "LORA", "lora_alpha": 8}'), "`r` is missing"),
    "text for the rank": (CONFIG, values(r="4"), "`r` is '4'"),
    "rank 0": (CONFIG, values(r=0), "`r` is 0"),
    "a rank that is true": (CONFIG, values(r=True), "`r` is True"),
    "text for alpha": (CONFIG, values(lora_alpha="8"), "lora_alpha"),
    "an enormous alpha": (CONFIG, values(lora_alpha=60000), "lora_alpha 60000 is more than 64 times the rank 4"),
    "NaN alpha": (CONFIG, values(lora_alpha=float("nan")), "lora_alpha"),
    "infinite alpha": (CONFIG, values(lora_alpha=float("inf")), "lora_alpha"),
    "another adapter": (CONFIG, values(peft_type="LOHA"), "peft_type"),
    "DoRA": (CONFIG, values(use_dora=True), "use_dora"),
    "ranks by pattern": (CONFIG, values(rank_pattern={"q_proj": 8}), "rank_pattern"),
    "a number for modules": (CONFIG, values(target_modules=7), "target_modules"),
    "a list for the base's file": (BASE, text("[]"), "valid object|should be an object"),
    "another model": (BASE, text('{"model_type": "llama"}'), "model_type"),
    "text for the width": (BASE, values(hidden_size="64"), "hidden_size"),
    "a million layers": (BASE, values(num_hidden_layers=10**6), "num_hidden_layers"),
    "no heads": (BASE, values(num_attention_heads=0), "num_attention_heads"),
    "heads that do not fit": (BASE, values(num_attention_heads=5), "num_attention_heads 5"),
    "NaN in a norm": (BASE, values(rms_norm_eps=float("nan")), "rms_norm_eps"),
    "a list for the rope": (BASE, values(rope_scaling=[2, 3, 3]), "rope_scaling"),
    "a rope of another size": (BASE, values("rope_scaling", mrope_section=[1, 1, 1]), "mrope_section"),
    "no rope": (BASE, values(rope_scaling=None), "mrope_section"),
    "a rope without sections": (BASE, values(rope_scaling={"type": "default"}), "mrope_section"),
    "a list for the tower": (BASE, lambda p: edit_json(p, vision_config=[]), "vision_config"),
    "other patches": (BASE, values("vision_config", patch_size=16), "patch_size"),
    "text for the clock": (BASE, values("vision_config", tokens_per_second="2"), "tokens_per_second"),
    "blocks by name": (BASE, values("vision_config", fullatt_block_indexes=["last"]), "fullatt_block_indexes"),
    "quantised": (BASE, values(quantization_config={"quant_method": "bitsandbytes"}), "quantization_config"),
    "an unknown activation": (BASE, values(hidden_act="none such"), "hidden_act"),
    "another activation of the tower": (BASE, values("vision_config", hidden_act="gelu"), "vision_config.hidden_act"),
    "a norm without effect": (BASE, values(rms_norm_eps=1e10), "rms_norm_eps"),
    "a rope without positions": (BASE, values(rope_theta=1e-3), "rope_theta"),
    "a stretched rope": (BASE, values("rope_scaling", rope_type="yarn"), "rope_type"),
    "a window of one token": (BASE, values(use_sliding_window=True, sliding_window=1), "use_sliding_window"),
    "a block that is not there": (BASE, values("vision_config", fullatt_block_indexes=[7]), "has 7, .*2 blocks"),
    "a tower of another width": (BASE, values("vision_config", out_hidden_size=32), "out_hidden_size 32"),
    "a clock that stands": (BASE, values("vision_config", tokens_per_second=1e-9), "tokens_per_second"),
    "a list for the tokenizer": (TOKENS, text("[]"), "valid object|should be an object"),
    "a tokenizer cut off": (TOKENS, truncated, "Invalid JSON"),
    "a tokenizer without vocabulary": (TOKENS, values("model", vocab=None), "cannot be read"),
    "tokens at random": (TOKENS, values("model", dropout=0.5), "model.dropout"),
    "a prefix that aborts the library": (TOKENS, values("model", continuing_subword_prefix="x"), "subword_prefix"),
}
TENSOR_FILES = {
    "text as an adapter": (ADAPTER, text("a LoRA"), "cannot be read"),
    "an adapter cut off": (ADAPTER, truncated, "cannot be read"),
    "NaN in the LoRA": (ADAPTER, tensor(Q, first_is(float("nan"))), "not finite"),
    "infinity in the LoRA": (ADAPTER, tensor(UP, first_is(float("-inf"))), "not finite"),
    "a LoRA of whole numbers": (ADAPTER, tensor(Q, lambda t: t.long()), "type int64"),
    "a LoRA of 8 bits": (ADAPTER, tensor(Q, lambda t: t.to(torch.float8_e4m3fn)), "type float8"),
    "a flat factor": (ADAPTER, tensor(Q, lambda t: t.flatten()), "shape \\[256\\].*rank 4"),
    "a factor of another rank": (ADAPTER, tensor(Q, lambda t: t[:3].clone()), "shape \\[3, 64\\].*rank 4"),
    "a turned factor": (ADAPTER, tensor(UP, lambda t: t.T.contiguous()), "shape \\[4, 64\\].*rank 4"),
    "a factor of another width": (ADAPTER, tensor(Q, lambda t: t[:, :60].clone()), "\\[64, 60\\].*\\[64, 64\\]"),
    "a factor in two spellings": (ADAPTER, tensors(two_spellings), "twice"),
    "a magnitude vector": (
        ADAPTER,
        tensors(lambda content: content | {"base_model.model.a.lora_magnitude_vector": torch.ones(4)}),
        "lora_magnitude_vector",
    ),
    "a LoRA that overflows": (
        ADAPTER,
        tensors(lambda content: {k: v * 1e30 if "lora_" in k else v for k, v in content.items()}),
        "infinite",
    ),
    "an adapter that was never filled": (
        ADAPTER,
        tensors(lambda content: {k: v * 0 for k, v in content.items()}),
        "adapter_model.safetensors holds only zeros",
    ),
    "a head of zeros": (FULL, tensor(HEAD, lambda t: t * 0), "only zeros in .*rm_head"),
    "a base that was never filled": (
        WEIGHTS,
        tensor("layers.0.mlp.up_proj.weight", lambda t: t * 0),
        "only zeros in .*up_proj",
    ),
    "text as weights": (FULL, text("weights"), "cut off, or not a file"),
    "weights cut off": (FULL, truncated, "non_lora_state_dict.pth"),
    "weights of an old torch": (FULL, legacy, "cut off, or not a file"),
    "compressed weights": (FULL, compressed, "compressed"),
    "a list of weights": (FULL, tensors(lambda content: list(content.values())), "not a dictionary"),
    "weights by number": (FULL, tensors(lambda content: {0: torch.ones(1)}), "not a dictionary"),
    "a list for a weight": (FULL, tensors(lambda content: content | {"base_model.model." + HEAD: [1.0]}), "a list"),
    "a NaN head": (FULL, tensor(HEAD, first_is(float("nan"))), "not finite.*rm_head"),
    "an infinite head": (FULL, tensor(HEAD, first_is(float("inf"))), "not finite.*rm_head"),
    "a head beyond float32": (FULL, tensor(HEAD, lambda t: t.double() * 1e300), "not finite.*rm_head"),
    "a head of whole numbers": (FULL, tensor(HEAD, lambda t: t.int()), "type int32"),
    "a complex head": (FULL, tensor(HEAD, lambda t: t.to(torch.complex64)), "type complex64"),
    "a head of three outputs": (FULL, tensor(HEAD, lambda t: t.repeat(3, 1)), "rm_head.weight is \\[3, 64\\]"),
    "a head without numbers": (FULL, tensor(HEAD, lambda t: t[:, :1].clone().expand(10**6, 64)), "fewer numbers"),
    "a sparse head": (FULL, tensor(HEAD, lambda t: t.to_sparse()), "sparse"),
    "a nested head": (FULL, tensor(HEAD, lambda t: torch.nested.nested_tensor([t[0], t[0, :2]])), "nested"),
    "text as the base": (WEIGHTS, text("weights"), "cannot be loaded"),
    "the base cut off": (WEIGHTS, truncated, "cannot be loaded"),
    "a list for the shards": (WEIGHTS, without_base_weights, "cannot be loaded"),
    "a misshapen base": (WEIGHTS, tensor("model.norm.weight", lambda t: torch.zeros(5)), "cannot be loaded"),
    "NaN in the base": (WEIGHTS, tensor("layers.0.mlp.up_proj.weight", first_is(float("nan"))), "not finite.*up_proj"),
}


@pytest.mark.parametrize("name", [*JSON_FILES, *TENSOR_FILES])
def test_a_broken_file_is_refused(released: Path, name: str) -> None:
    file, break_it, message = (JSON_FILES | TENSOR_FILES)[name]
    break_it(released / file)
    with pytest.raises(UserError, match=f"(?s){message}") as refused:
        IdentityReward.load(released / "identity_reward")
    said = str(refused.value)
    assert str(released) in said or "a folder on another machine" in said
    assert len(said) < 1200


def test_a_checkpoint_is_refused_before_its_base_is_loaded(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading 3 billion weights takes a minute."""
    monkeypatch.setattr("trainers.rewards.identity.open_base", lambda *_: pytest.fail("the base was loaded"))
    set_tensor(released / FULL, HEAD, first_is(float("nan")))
    with pytest.raises(UserError, match="not finite"):
        IdentityReward.load(released / "identity_reward")


def test_a_model_is_unchanged_when_its_weights_do_not_fit(released: Path) -> None:
    set_tensor(released / ADAPTER, "layers.1.mlp.up_proj.lora_A.weight", lambda t: t[:, :60].clone())
    checkpoint = find_checkpoint(released / "identity_reward")
    model, _ = open_base(released / "base_model", torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match="up_proj"):
        merge_weights(model, checkpoint, read_weights(checkpoint))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_code_in_a_pickle_is_not_run(released: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (Path.touch, (released / "owned",))

    torch.save({"base_model.model.rm_head.weight": Evil()}, released / FULL)
    with pytest.raises(UserError, match=r"non_lora_state_dict.pth .* is refused"):
        IdentityReward.load(released / "identity_reward")
    assert not (released / "owned").exists()


def test_weights_of_half_precision_are_read(released: Path) -> None:
    """The strict checks take the floating-point types that rewards are stored in."""
    edit_tensors(released / FULL, lambda content: {k: v.to(torch.bfloat16) for k, v in content.items()})
    edit_tensors(released / ADAPTER, lambda content: {k: v.to(torch.float16) for k, v in content.items()})
    IdentityReward.load(released / "identity_reward")


def test_a_base_with_pickled_weights_only_is_refused(released: Path) -> None:
    weights = released / WEIGHTS
    torch.save({"weight": torch.zeros(1, 1)}, weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        IdentityReward.load(released / "identity_reward")


def test_sizes_may_be_nested_as_newer_transformers_write_them(released: Path) -> None:
    """A wrong size is found there too."""
    content = json.loads((released / BASE).read_text(encoding="utf-8"))
    sizes = {k: content.pop(k) for k in ("hidden_size", "num_hidden_layers", "num_attention_heads")}
    content["text_config"] = sizes | {"num_hidden_layers": "2"}
    (released / BASE).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="text_config.num_hidden_layers"):
        IdentityReward.load(released / "identity_reward")


def test_a_base_without_gaps_in_its_tokens_is_needed(released: Path) -> None:
    content = json.loads((released / TOKENS).read_text(encoding="utf-8"))
    content["model"]["vocab"][max(content["model"]["vocab"], key=content["model"]["vocab"].get)] = 10**6
    (released / TOKENS).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="gaps"):
        IdentityReward.load(released / "identity_reward")


@pytest.mark.parametrize("room", ["rewards", "preference", "parity"])
def test_no_loader_may_run_a_folders_own_code(repository: Path, room: str) -> None:
    for file in sorted((repository / "trainers" / room).glob("*.py")):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "from_pretrained":
                given = {keyword.arg: keyword.value for keyword in call.keywords}
                assert ast.unparse(given.get("trust_remote_code", ast.Constant(None))) == "False", file.name


def test_a_file_in_place_of_a_rewards_folder_is_named_by_what_it_is(tmp_path: Path) -> None:
    factors = {"A": torch.ones(2, 8), "B": torch.ones(8, 2)}
    names = {f"diffusion_model.blocks.0.self_attn.q.lora_{side}.weight": value for side, value in factors.items()}
    save_file(names, tmp_path / "file.safetensors")
    (tmp_path / "notes.txt").write_text("two people")
    with pytest.raises(UserError, match=r"file.safetensors is not the folder of an identity reward \(LoRA for Wan, "):
        find_checkpoint(tmp_path / "file.safetensors")
    with pytest.raises(UserError, match="notes.txt is not the folder of an identity reward; give"):
        find_checkpoint(tmp_path / "notes.txt")
