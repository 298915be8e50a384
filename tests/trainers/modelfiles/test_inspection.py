"""One line about a file of weights, of whatever kind."""

from __future__ import annotations

import json

import gguf
import pytest
import torch
from safetensors.torch import save_file

from trainers.errors import UserError
from trainers.modelfiles.inspection import inspect_file

from .synthetic import (
    int8,
    llama_cpp,
    make_text_encoder,
    make_transformer,
    scaled_fp8,
    text_weights,
    transformer_weights,
    write_gguf,
)


def zeros(**shapes):
    return {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}


QWEN = {
    "visual.blocks.0.mlp.gate_proj.weight": (2, 2),
    "model.layers.0.self_attn.q_proj.weight": (2, 2),
    "model.layers.0.input_layernorm.weight": (2048,),
}


@pytest.fixture
def inspect(tmp_path):
    """The line about a file with these tensors and this header."""

    def inspected(tensors, metadata=None):
        save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "m.safetensors", metadata)
        return inspect_file(tmp_path / "m.safetensors")

    return inspected


@pytest.fixture(scope="module")
def vace():
    return transformer_weights(make_transformer("vace", num_layers=1, vace_layers=[0]))


@pytest.mark.parametrize(
    ("form", "types"), [(dict, "F32"), (scaled_fp8, "F8_E4M3 and F32 with scales"), (int8, "I8 and F32 with scales")]
)
def test_a_transformer_has_kind_size_types_and_names(inspect, vace, form, types):
    count = sum(t.numel() for t in vace.values()) / 1e6
    line = inspect(form(vace))
    assert line == f"VACE of Wan 2.1, {count:.1f} million parameters, {types}, original names"


def test_the_published_sizes_have_their_names(inspect):
    shapes = {
        "patch_embedding.weight": (1536, 16, 1, 2, 2),
        "head.head.weight": (64, 1536),
        "blocks.0.self_attn.q.weight": (2, 2),
    }
    assert inspect(zeros(**shapes)).startswith("Phantom 1.3B or the text-to-video model of Wan, ")
    assert inspect(zeros(**shapes | {"vace_blocks.0.self_attn.q.weight": (2, 2)})).startswith("VACE 1.3B of Wan 2.1, ")


@pytest.mark.parametrize(
    ("channels", "added", "line"),
    [
        (48, {}, "Wan Fun-Control"),
        (36, {"img_emb.proj.0.weight": (2,)}, "Wan image-to-video model"),
        (36, {"vace_blocks.0.norm3.weight": (2,)}, "VACE on a Wan image-to-video model"),
        (16, {"casual_audio_encoder.weight": (2,)}, "Wan 2.2 S2V"),
    ],
)
def test_relatives_are_named(inspect, channels, added, line):
    shapes = {"patch_embedding.weight": (24, channels, 1, 2, 2), "head.head.weight": (64, 24), **added}
    assert inspect(zeros(**shapes)).startswith(line + ", ")


def test_control_blocks_alone_are_named(inspect, vace):
    assert inspect({n: t for n, t in vace.items() if n.startswith("vace_")}).startswith("VACE's control blocks without")


def test_a_checkpoint_of_a_whole_pipeline_names_its_parts(inspect, vace):
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in vace.items()}
    line = inspect(tensors | zeros(**{"vae.conv2.weight": (2,), "text_encoders.umt5xxl.shared.weight": (2, 2)}))
    assert line.startswith("checkpoint of a whole pipeline (model, text encoder, VAE) with VACE of Wan 2.1, ")


@pytest.mark.parametrize(("kind", "name"), [("UMT5", "UMT5 text encoder"), ("T5", "T5 text encoder")])
def test_text_encoders_are_told_apart(inspect, kind, name):
    line = inspect(text_weights(make_text_encoder(kind)))
    assert line.startswith(f"{name}, ") and line.endswith("F32, transformers' names")


def test_a_gguf_file_has_its_quantisation(tmp_path):
    weights = llama_cpp(text_weights(make_text_encoder()))
    line = inspect_file(write_gguf(tmp_path / "t.gguf", weights, "Q6_K", "t5encoder"))
    assert line.startswith("UMT5 text encoder, ") and line.endswith("Q6_K, llama.cpp's names")


def test_a_gguf_file_may_have_a_tokenizer_in_its_header(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "t5encoder")
    writer.add_tokenizer_model("t5")
    writer.add_token_list(["<pad>", "</s>"])
    for name, tensor in llama_cpp(text_weights(make_text_encoder())).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert inspect_file(tmp_path / "t.gguf").startswith("UMT5 text encoder, ")


@pytest.mark.parametrize(
    ("tensors", "line"),
    [
        ({"decoder.conv1.weight": (2, 16, 3, 3, 3), "conv2.weight": (16, 16, 1, 1, 1)}, "VAE of Wan 2.1, "),
        ({"decoder.conv1.weight": (2, 48, 3, 3, 3), "conv2.weight": (48, 48, 1, 1, 1)}, "VAE of Wan 2.2 TI2V-5B, "),
        ({"first_stage_model.decoder.conv_in.weight": (2, 4, 3, 3)}, "VAE of images, "),
        ({"double_blocks.0.img_attn.qkv.weight": (2, 2)}, "transformer of another family (Flux"),
        (QWEN, "Qwen2.5-VL 3B, "),
        ({"model.layers.0.self_attn.q_proj.weight": (2, 2)}, "language model, "),
        ({"base_model.model.rm_head.weight": (1, 2)}, "identity reward, "),
        ({"rm_head.weight": (1, 2), "model.layers.0.self_attn.q_proj.lora_A.weight": (1, 2)}, "identity reward, "),
        ({"text_model.encoder.layers.0.mlp.fc1.weight": (2, 2)}, "CLIP text encoder, "),
        ({"something": (2, 2)}, "weights of an unknown model, 0.0 million parameters, BF16"),
    ],
)  # fmt: skip
def test_other_files_are_named(inspect, tensors, line):
    assert inspect(zeros(**tensors)).startswith(line)


def lora(prefix="diffusion_model.", part="self_attn.o", width=1536, down="lora_A.weight", up="lora_B.weight"):
    name = f"{prefix}blocks.0.{part}"
    return zeros(**{f"{name}.{down}": (8, width), f"{name}.{up}": (width, 8)})


def test_a_lora_has_its_model_rank_and_layers(inspect):
    assert inspect(lora()) == "LoRA for Wan 1.3B, rank 8, 1 layers, BF16, original names"
    assert inspect(lora(width=5120, prefix="vace_")).startswith("LoRA for VACE 14B, rank 8, ")
    assert inspect(lora("lora_unet_", down="lora_down.weight", up="lora_up.weight")).endswith("kohya's names")
    assert inspect(lora("base_model.model.", "attn1.to_out.0")).endswith("PEFT's names")
    compiled = {f"lora_unet_blocks_0__orig_mod_self_attn_o.lora_{part}.weight": (8, 8) for part in ("down", "up")}
    assert inspect(zeros(**compiled)).startswith("LoRA for Wan, rank 8, ")


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        ("lokr_w1", "LoKr"),
        ("hada_w1_a", "LoHa"),
        ("vera_lambda_b", "VeRA"),
        ("boft_R", "BOFT adapter"),
        ("a1.weight", "GLoRA"),
    ],
)
def test_other_adapters_are_named(inspect, suffix, kind):
    assert inspect(zeros(**{f"diffusion_model.blocks.0.self_attn.q.{suffix}": (2, 2)})).startswith(f"{kind} for Wan, ")


@pytest.mark.parametrize(
    ("header", "end"),
    [
        ({"ss_steps": "9", "ss_sd_model_name": "wan"}, "trained with sd-scripts or musubi-tuner, on wan, step 9"),
        ({"software": json.dumps({"name": "ai-toolkit", "version": "0.7"})}, "trained with ai-toolkit 0.7"),
        ({"run": "r-1", "iteration": "12"}, "trained with Identity-GRPO (run r-1), iteration 12"),
        ({"software": "a\nb\x1b[0m" + "x" * 900}, "x..."),
        ({"format": "pt"}, "original names"),
    ],
)  # fmt: skip
def test_the_header_shows_what_it_was_trained_with(inspect, header, end):
    line = inspect(lora(), header)
    assert line.endswith(end) and "\n" not in line and "\x1b" not in line and len(line) < 300


def test_folders_of_several_parts_are_named(tmp_path, repository):
    make_transformer("phantom", num_layers=1).save_pretrained(tmp_path / "wan" / "transformer")
    assert inspect_file(tmp_path / "wan").startswith(
        "diffusers folder with Phantom or the text-to-video model of Wan, "
    )
    reward = inspect_file(repository / "tests" / "golden" / "identity_reward" / "identity_reward")
    assert reward.startswith("folder of a reward, its checkpoint-21 is identity reward, ")


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04", b"GGUF"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, content):
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="m.safetensors"):
        inspect_file(tmp_path / "m.safetensors")


def test_a_reward_in_one_file_is_named_by_its_folder(tmp_path):
    torch.save({"rm_head.weight": torch.ones(1, 2)}, tmp_path / "model.pth")
    (tmp_path / "model_config.json").write_text("{}")
    assert inspect_file(tmp_path).startswith("folder of a reward, it is identity reward, ")


def test_a_reward_s_checkpoint_and_a_run_are_named_by_their_folders(repository, tmp_path):
    reward = repository / "trainers" / "tinyworld" / "weights" / "reward" / "identity_reward"
    assert inspect_file(reward / "checkpoint-1183").startswith("checkpoint of a reward, it is identity reward, ")
    (tmp_path / "exports").mkdir()
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match="is the folder of a run that has written no LoRA yet"):
        inspect_file(tmp_path)
    for iteration in (2, 10):
        path = tmp_path / "exports" / f"run-{iteration:06d}.safetensors"
        save_file({f"diffusion_model.blocks.0.self_attn.q.lora_{n}.weight": torch.ones(2, 2) for n in ("A", "B")}, path)
    assert inspect_file(tmp_path).startswith("folder of a run, its newest LoRA run-000010.safetensors is LoRA for Wan")
