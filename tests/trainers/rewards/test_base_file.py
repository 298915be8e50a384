"""A base model in one file, as ComfyUI has Qwen2.5-VL."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.errors import UserError
from trainers.rewards.base_file import infer_config, load_base_file
from trainers.rewards.folder import find_base, find_checkpoint
from trainers.rewards.identity import open_base

SIZES = {"hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 1075}
TOWER = {"depth": 2, "hidden_size": 160, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 256}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory, repository):
    """The folder of a small Qwen2.5-VL with heads of the published widths, and its file by ComfyUI's names."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"type": "mrope", "rope_type": "default", "mrope_section": [16, 24, 24]}
    tower = TOWER | {"fullatt_block_indexes": [], "tokens_per_second": 2, "window_size": 112}
    config = Qwen2_5_VLConfig(
        **SIZES,
        num_attention_heads=2,
        num_key_value_heads=1,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        rope_scaling=rope,
        vision_config=tower,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(config)
    folder = tmp_path_factory.mktemp("qwen")
    model.save_pretrained(folder)
    shutil.copy(repository / "tests/golden/identity_reward/base_model/tokenizer.json", folder)
    file = folder / "qwen_2.5_vl_fp16.safetensors"
    weights = {}
    for name, value in load_file(folder / "model.safetensors").items():
        weights[name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")] = value
    save_file(weights, file)
    assert "model.layers.0.self_attn.q_proj.weight" in weights and "visual.merger.mlp.2.weight" in weights
    return folder, file


def test_a_file_gives_the_weights_and_settings_of_its_folder(qwen):
    folder, file = qwen
    (ours, sequencer), (theirs, other) = open_base(file, torch.float32), open_base(folder, torch.float32)
    expected = {name: value for name, value in theirs.state_dict().items() if not name.startswith("rm_head.")}
    found = ours.state_dict()
    for name, value in expected.items():
        rows = SIZES["vocab_size"] if "embed_tokens" in name else len(value)
        assert torch.equal(found[name][:rows], value[:rows]), name
    assert found.keys() - {"rm_head.weight"} == expected.keys()
    assert (sequencer.vocabulary, sequencer.tokens_per_second) == (other.vocabulary, other.tokens_per_second)


def test_a_file_computes_what_its_folder_computes(qwen, clips, references):
    from trainers.rewards.collator import Collator
    from trainers.rewards.identity import IdentityReward

    scores = []
    for place in qwen:
        model, sequencer = open_base(place, torch.float32)
        model.rm_head.weight.data.fill_(0.01)
        rows = SIZES["vocab_size"]
        model.language_model.get_input_embeddings().weight.data[rows:] = 0.5
        scores.append(IdentityReward(model.requires_grad_(False), Collator(sequencer)).score(clips, references))
    torch.testing.assert_close(*scores, atol=1e-5, rtol=0)


def test_the_published_sizes_are_inferred_from_shapes():
    shapes = {
        "language_model.embed_tokens.weight": (151936, 2048),
        "language_model.layers.0.self_attn.q_proj.weight": (2048, 2048),
        "language_model.layers.0.self_attn.k_proj.weight": (256, 2048),
        "language_model.layers.35.self_attn.k_proj.weight": (256, 2048),
        "language_model.layers.0.mlp.gate_proj.weight": (11008, 2048),
        "visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14),
        "visual.blocks.0.mlp.gate_proj.weight": (3420, 1280),
        "visual.blocks.31.mlp.gate_proj.weight": (3420, 1280),
        "visual.merger.mlp.2.weight": (2048, 5120),
    }
    found = infer_config(shapes, "m")
    assert (found["num_hidden_layers"], found["num_attention_heads"], found["num_key_value_heads"]) == (36, 16, 2)
    tower = found["vision_config"]
    assert (tower["depth"], tower["num_heads"], tower["fullatt_block_indexes"]) == (32, 16, [7, 15, 23, 31])


def test_the_tokenizer_may_lie_in_the_rewards_folder(qwen, tmp_path):
    shutil.copy(qwen[1], tmp_path / "qwen.safetensors")
    with pytest.raises(UserError, match=r"qwen.safetensors has no tokenizer; put tokenizer.json of Qwen/Qwen2.5-VL-3B"):
        open_base(tmp_path / "qwen.safetensors", torch.float32)
    open_base(tmp_path / "qwen.safetensors", torch.float32, tokenizers=[qwen[0]])


def test_another_file_is_named(repository, tmp_path):
    weights = repository / "tests" / "golden" / "vace" / "vace_tiny.safetensors"
    with pytest.raises(UserError, match=r"vace_tiny.safetensors is VACE of Wan 2.1, and lacks language_model.embed"):
        load_base_file(weights, torch.float32, "sdpa")


def test_a_missing_layer_is_named(qwen, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in load_file(qwen[1]).items() if k != name}, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match="m.safetensors is not a complete .*up_proj"):
        load_base_file(tmp_path / "m.safetensors", torch.float32, "sdpa")


def test_a_file_may_be_the_base_model_of_a_checkpoint(released: Path, qwen):
    assert find_base(find_checkpoint(released / "identity_reward"), qwen[1]) == qwen[1]
