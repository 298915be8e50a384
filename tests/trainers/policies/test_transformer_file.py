"""Transformers in single files of either naming, in shards and in folders; and files of other models."""

from __future__ import annotations

import json
import os
import shutil
from functools import cache

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.errors import UserError
from trainers.lora.names import to_original
from trainers.policies.model_config import TransformerConfig
from trainers.policies.transformer_file import describe_transformer, infer_config, load_transformer

from .conftest import TRANSFORMER, make_transformer, original_file, original_weights, same_weights

HEADER = {"config": json.dumps({"transformer": {"num_heads": 2, "vace_layers": [0, 2]}})}


@pytest.fixture
def transformer(kind):
    return _random_transformer(kind)


@cache
def _random_transformer(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make_transformer(kind)
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def write(tmp_path):
    """Writes tensors to a file whose header has the heads and control layers of the tests' transformer."""

    def save(tensors, name="m.safetensors"):
        save_file({key: value.clone().contiguous() for key, value in tensors.items()}, tmp_path / name, HEADER)
        return tmp_path / name

    return save


@pytest.fixture
def folder(transformer, tmp_path):
    transformer.save_pretrained(tmp_path / "transformer")
    return tmp_path / "transformer"


@pytest.fixture
def change_config(folder):
    """Changes values of the folder's config.json; None removes one."""

    def change(**changes):
        path = folder / "config.json"
        values = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in values.items() if value != "REMOVE"}))

    return change


def refusal(path) -> str:
    """The error of a transformer that is refused, both when it is recognised and when it is loaded."""
    messages = []
    for attempt in (describe_transformer, load_transformer):
        with pytest.raises(UserError) as error:
            attempt(path)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    return messages[0]


def test_a_folder_has_the_weights_and_settings_that_diffusers_wrote(transformer, folder, kind):
    loaded = load_transformer(folder)
    assert same_weights(loaded, transformer)
    settings = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    assert {name: loaded.config[name] for name in settings} == {
        name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()
    }
    assert describe_transformer(folder).kind == kind
    assert describe_transformer(folder).parameters == sum(p.numel() for p in transformer.parameters())
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize(
    "prefix", ["", "model.diffusion_model.", "diffusion_model.", "model.", "module.", "net.", "_orig_mod.module."]
)
def test_prefixes_are_stripped(transformer, write, prefix):
    assert same_weights(load_transformer(write(original_weights(transformer, prefix))), transformer)


def test_wrappers_inside_blocks_are_stripped(transformer, write):
    weights = {}
    for name, value in original_weights(transformer).items():
        head, dot, rest = name.partition(".0.")
        wrapper = "_orig_mod._checkpoint_wrapped_module"
        weights[f"module.{head}{dot}{wrapper}.{rest}" if dot else f"module.{name}"] = value
    assert any("blocks.0._orig_mod._checkpoint_wrapped_module.self_attn" in name for name in weights)
    assert same_weights(load_transformer(write(weights)), transformer)


def test_a_single_file_in_the_names_of_diffusers_is_read(transformer, write):
    assert same_weights(load_transformer(write(transformer.state_dict())), transformer)


def test_the_file_of_a_diffusers_folder_is_read_with_the_configuration_beside_it(transformer, folder):
    assert same_weights(load_transformer(folder / "diffusion_pytorch_model.safetensors"), transformer)


def test_the_transformer_of_an_all_in_one_checkpoint_is_read(transformer, write):
    others = {"text_encoders.umt5xxl.transformer.shared.weight": torch.zeros(2, 2), "vae.conv1.weight": torch.zeros(1)}
    for prefix in ("model.diffusion_model.", ""):
        path = write(original_weights(transformer, prefix) | others)
        assert same_weights(load_transformer(path), transformer)
        assert describe_transformer(path).parameters == sum(p.numel() for p in transformer.parameters())


def test_a_weight_under_two_names_is_refused(transformer, write):
    weights = original_weights(transformer)
    path = write(weights | {"model.head.head.weight": weights["head.head.weight"]})
    assert "holds head.head.weight twice" in refusal(path)


@pytest.mark.parametrize("spelling", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("naming", ["original", "diffusers"])
def test_scaled_float8_gives_the_weights_within_its_precision(transformer, write, spelling, naming):
    weights = original_weights(transformer) if naming == "original" else dict(transformer.state_dict())
    matrices = [name for name, value in weights.items() if value.ndim == 2 and ".weight" in name and "blocks." in name]
    for name in matrices:
        scale = weights[name].abs().max() / 448
        weights |= {name: (weights[name] / scale).to(torch.float8_e4m3fn), f"{name[:-6]}{spelling}": scale}
    loaded = load_transformer(write(weights)).state_dict()
    changed = 0
    for name, expected in transformer.state_dict().items():
        error = (loaded[name] - expected).abs()
        # e4m3 keeps three bits after the first: half a step is a sixteenth, and 2^-10 of the scale near zero.
        assert (error <= expected.abs() / 15.9 + expected.abs().max() / 448 * 2**-9.9).all(), name
        changed += bool(error.any())
    assert changed == len(matrices)


def test_shards_of_the_original_release_are_read_from_any_of_them_and_from_their_folder(transformer, kind, tmp_path):
    weights = original_weights(transformer)
    names = sorted(weights)
    for i in range(3):
        save_file(
            {n: weights[n] for n in names[i::3]}, tmp_path / f"diffusion_pytorch_model-0000{i + 1}-of-00003.safetensors"
        )
    config = {"_class_name": {"vace": "VaceWanModel", "phantom": "WanModel"}[kind], "dim": 24, "num_heads": 2}
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"vace_layers": [0, 2], "num_layers": 3, "qk_norm": True})
    )
    for place in [*sorted(tmp_path.glob("*.safetensors")), tmp_path]:
        assert describe_transformer(place).kind == kind
        assert same_weights(load_transformer(place), transformer)
    (tmp_path / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    for place in (tmp_path / "diffusion_pytorch_model-00001-of-00003.safetensors", tmp_path):
        assert "of which 1 are missing: diffusion_pytorch_model-00002-of-00003" in refusal(place)


def test_a_config_of_the_same_model_beside_a_file_is_used_and_another_is_not(transformer, tmp_path):
    path = original_file(transformer, tmp_path / "a.safetensors")
    config = {"dim": 24, "num_heads": 2, "num_layers": 3, "vace_layers": [0, 2], "eps": 1e-5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_transformer(path)
    assert (loaded.config.num_attention_heads, loaded.config.eps) == (2, 1e-5)
    for other in ({"dim": 25}, {"num_layers": 4}):
        (tmp_path / "config.json").write_text(json.dumps(config | other))
        assert "cannot share evenly" in refusal(path)


@pytest.mark.parametrize(
    ("class_name", "dim", "layers", "placed"),
    [
        ("WanVACETransformer3DModel", 1536, 30, list(range(0, 30, 2))),
        ("WanVACETransformer3DModel", 5120, 40, [0, 5, 10, 15, 20, 25, 30, 35]),
        ("WanTransformer3DModel", 1536, 30, None),
        ("WanTransformer3DModel", 5120, 40, None),
    ],
)
def test_the_published_sizes_are_inferred_from_shapes(class_name, dim, layers, placed):
    import diffusers
    from accelerate import init_empty_weights

    config = {"num_attention_heads": dim // 128, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": layers}
    if placed:
        config["vace_layers"] = placed
    with init_empty_weights():
        model = getattr(diffusers, class_name)(**config)
        shapes = {to_original(n): tuple(p.shape) for n, p in model.state_dict().items()}
    found = infer_config(shapes, TransformerConfig(), "m")
    assert {key: found[key] for key in config} == config
    assert (found["text_dim"], found["freq_dim"], found["out_channels"]) == (4096, 256, 16)
    assert found.get("vace_in_channels") == (96 if placed else None)
    assert len({n for n in shapes if n.startswith("vace_blocks.") and "before_proj" in n}) == (2 if placed else 0)


@pytest.mark.parametrize("from_file", [False, True])
def test_half_precision_keeps_the_parts_that_need_float32(transformer, folder, write, from_file):
    loaded = load_transformer(write(original_weights(transformer)) if from_file else folder, torch.bfloat16)
    assert loaded.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert loaded.blocks[0].norm2.weight.dtype == torch.float32
    assert loaded.scale_shift_table.dtype == torch.float32
    assert loaded.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32


# --- other models ----------------------------------------------------------------------------------------------------


def embedding(channels):
    return {"patch_embedding.weight": torch.zeros(24, channels, 1, 2, 2)}


@pytest.mark.parametrize(
    ("added", "what"),
    [
        (embedding(36), "a Wan image-to-video model, with inputs that"),
        (embedding(36) | {"img_emb.proj.0.weight": torch.zeros(8)}, "a Wan image-to-video model"),
        (embedding(48) | {"head.head.weight": torch.zeros(192, 24)}, "Wan 2.2 TI2V-5B"),
        (embedding(48), "Wan Fun-Control"),
        (embedding(48) | {"img_emb.proj.0.weight": torch.zeros(8)}, "Wan Fun-Control"),
        (embedding(100) | {"head.head.weight": torch.zeros(192, 24)}, "a relative of Wan 2.2 TI2V-5B"),
        (embedding(32) | {"control_adapter.conv.weight": torch.zeros(1)}, "Wan Fun-Camera"),
        (embedding(36) | {"face_adapter.fuser_blocks.0.k_norm.weight": torch.zeros(1)}, "Wan Animate"),
        ({"casual_audio_encoder.encoder.final_linear.weight": torch.zeros(1)}, "Wan 2.2 S2V"),
        ({"audio_proj.audio_proj_glob_1.layer.bias": torch.zeros(1)}, "HuMo"),
        (embedding(20), "another Wan transformer"),
        ({"head.head.weight": torch.zeros(192, 24)}, "another Wan transformer"),
    ],
)
def test_other_wan_models_are_named(transformer, kind, write, added, what):
    message = refusal(write(original_weights(transformer) | added))
    assert f"is VACE on {what}" in message if kind == "vace" else f"is {what}" in message
    assert "downloaded" not in message and "give a VACE or Phantom transformer of Wan 2.1" in message


def test_a_folder_of_another_wan_model_is_named(tmp_path):
    from diffusers import WanTransformer3DModel

    WanTransformer3DModel(**TRANSFORMER, in_channels=36, image_dim=8).save_pretrained(tmp_path / "i2v")
    WanTransformer3DModel(**TRANSFORMER, in_channels=48, out_channels=48).save_pretrained(tmp_path / "ti2v")
    assert "is a Wan image-to-video model" in refusal(tmp_path / "i2v")
    assert "is Wan 2.2 TI2V-5B" in refusal(tmp_path / "ti2v")


@pytest.mark.parametrize("kind", ["vace"])
def test_vaces_control_blocks_alone_are_named(transformer, write):
    for prefix in ("", "diffusion_model."):
        weights = {n: v for n, v in original_weights(transformer, prefix).items() if n.startswith(f"{prefix}vace_")}
        assert (
            "holds only VACE's control blocks; give a full VACE model, or its text-to-video model with this"
            in refusal(write(weights))
        )


@pytest.fixture
def split(transformer, write):
    """A text-to-video model and VACE's control blocks in two files, as WanVideoWrapper has them."""
    weights = original_weights(transformer)
    module = {n: v for n, v in weights.items() if n.startswith("vace_")}
    base = {n: v for n, v in weights.items() if n not in module}
    return write(base, "t2v.safetensors"), write(module, "vace_module.safetensors")


@pytest.mark.parametrize("kind", ["vace"])
def test_control_blocks_beside_their_text_to_video_model_are_vace(transformer, split):
    base, module = split
    assert describe_transformer(base).kind == "phantom"
    found = describe_transformer(base, module)
    assert found.kind == "vace" and found.parameters == sum(p.numel() for p in transformer.parameters())
    assert same_weights(load_transformer(base, vace_module=module), transformer)


@pytest.mark.parametrize("kind", ["vace"])
def test_a_scaled_base_may_have_control_blocks_without_scales(transformer, split, write):
    base, module = split
    weights = load_file(base)
    name = "blocks.0.ffn.0.weight"
    write(
        weights | {name: weights[name].to(torch.float8_e4m3fn), name[:-6] + "scale_weight": torch.ones(())}, base.name
    )
    part = load_file(module)
    name = "vace_blocks.0.ffn.0.weight"
    write(part | {name: part[name].to(torch.float8_e4m3fn)}, module.name)
    assert describe_transformer(base, module).kind == "vace"


@pytest.mark.parametrize("kind", ["vace"])
def test_both_files_may_be_scaled_and_marked_so(transformer, split, write):
    for path in split:
        weights, name = load_file(path), f"{'vace_' if 'vace' in path.name else ''}blocks.0.ffn.0.weight"
        scale = weights[name].abs().max() / 448
        weights |= {name: (weights[name] / scale).to(torch.float8_e4m3fn), f"{name[:-6]}scale_weight": scale}
        write(weights | {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, path.name)
    found = load_transformer(split[0], vace_module=split[1]).state_dict()
    differences = [(found[name] - value).abs().max() for name, value in transformer.state_dict().items()]
    assert 0 < max(differences) < 0.1


@pytest.mark.parametrize("kind", ["vace"])
def test_another_file_as_the_control_blocks_is_refused(transformer, split, write):
    base, module = split
    with pytest.raises(UserError, match="t2v.safetensors is no file of VACE's control blocks alone"):
        describe_transformer(base, base)
    full = write(original_weights(transformer), "full.safetensors")
    with pytest.raises(UserError, match="full.safetensors has VACE's control blocks itself"):
        describe_transformer(full, module)


@pytest.mark.parametrize("kind", ["vace"])
def test_another_control_input_is_refused(transformer, write):
    weights = original_weights(transformer) | {"vace_patch_embedding.weight": torch.zeros(24, 80, 1, 2, 2)}
    assert "control input of 80 channels, 96 are expected" in refusal(write(weights))


@pytest.mark.parametrize(
    ("weights", "what"),
    [
        ({"some.weight": torch.zeros(2)}, "is not a Wan transformer"),
        (
            {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.zeros(2, 2)},
            "is a LoRA for Wan, not a Wan transformer",
        ),
        ({"decoder.conv1.weight": torch.zeros(2)}, "is a VAE of images, not a Wan transformer"),
        ({"encoder.block.0.layer.0.SelfAttention.q.weight": torch.zeros(2)}, "is a UMT5 text encoder"),
        (embedding(16) | {"head.head.weight": torch.zeros(64, 24)}, "it lacks blocks.0.ffn.0.weight, text_embedding"),
        ({"patch_embedding.weight": torch.zeros(4), "head.head.weight": torch.zeros(4)}, "has other dimensions"),
    ],
)
def test_files_of_other_things_are_named(write, weights, what):
    assert what.replace("has other", "have other") in refusal(write(weights))


def test_8_bit_in_other_forms_is_named_already_when_the_model_is_recognised(transformer, write):
    name = "blocks.0.self_attn.q.weight"
    weights = original_weights(transformer)
    rows = weights | {name: weights[name].to(torch.float8_e4m3fn), name[:-6] + "scale_weight": torch.ones(24, 2)}
    integers = weights | {name: weights[name].to(torch.int8), name[:-6] + "weight_scale": torch.ones(())}
    for packed in (rows, integers):
        message = refusal(write(packed))
        assert "8-bit in a form that is not read: blocks.0.self_attn.q.weight" in message
        assert "give the fp16 or bf16 file" in message


# --- what is incomplete, or does not fit -----------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "damage"), [(float("nan"), "not finite"), (0.0, "only zeros")])
def test_damaged_weights_are_named(transformer, write, value, damage):
    name = "blocks.1.ffn.0.weight"
    weights = original_weights(transformer)
    weights[name] = torch.full_like(weights[name], value)
    with pytest.raises(UserError, match=rf"m\.safetensors is damaged: {name} holds .*{damage}"):
        load_transformer(write(weights))


@pytest.mark.parametrize("kind", ["vace"])
def test_control_blocks_that_training_starts_at_zero_are_read(transformer, write):
    weights = original_weights(transformer)
    weights["vace_blocks.0.after_proj.weight"].zero_()
    load_transformer(write(weights))


def test_a_pickled_transformer_is_read(transformer, tmp_path):
    torch.save({"state_dict": original_weights(transformer)}, tmp_path / "Phantom-Wan-1.3B.pth")
    config = {"num_heads": 2, "dim": 24, "num_layers": 3, "vace_layers": [0, 2]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert same_weights(load_transformer(tmp_path / "Phantom-Wan-1.3B.pth"), transformer)


def test_missing_weights_are_named(transformer, folder, write):
    weights = {n: v for n, v in original_weights(transformer).items() if n != "blocks.1.self_attn.q.weight"}
    with pytest.raises(UserError, match=r"(?s)m\.safetensors.*lacks blocks\.1\.attn1\.to_q\.weight; .*to its end"):
        load_transformer(write(weights))
    path = folder / "diffusion_pytorch_model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if n != "proj_out.bias"}, path)
    with pytest.raises(UserError, match="lacks proj_out.bias"):
        load_transformer(folder)


def test_a_missing_layer_and_a_layer_number_of_a_million_are_refused(transformer, write):
    weights = original_weights(transformer)
    for number in (4, 1_000_000):
        path = write(weights | {f"blocks.{number}.norm3.bias": torch.zeros(24)})
        assert f"has 4 layers, numbered up to {number}" in refusal(path)


@pytest.mark.parametrize("kind", ["vace"])
def test_control_blocks_that_cannot_be_placed_are_refused(transformer, tmp_path):
    path = original_file(
        transformer, tmp_path / "a.safetensors", metadata={"config": '{"transformer": {"num_heads": 2}}'}
    )
    assert "after which of its 3 layers the 2 control blocks act" in refusal(path)


@pytest.mark.parametrize(
    "header", ["[]", "{", '{"transformer": 3}', '{"transformer": {"num_heads": "2"}}', "[" * 10_000]
)
def test_a_broken_configuration_in_the_header_is_refused(transformer, tmp_path, header):
    assert "a.safetensors" in refusal(
        original_file(transformer, tmp_path / "a.safetensors", metadata={"config": header})
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_layers": 1_000_000}, "num_layers is 1000000"),
        ({"num_layers": "3"}, "num_layers is '3'"),
        ({"num_layers": 3.5}, "num_layers is 3.5"),
        ({"num_layers": True}, "num_layers is True"),
        ({"num_layers": -1}, "num_layers is -1"),
        ({"num_layers": {"a": [1]}}, "num_layers is {'a': [1]}"),
        ({"num_layers": 4}, "num_layers 4, and the weights show 3"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_attention_heads": 5}, "5 attention heads cannot share evenly"),
        ({"attention_head_dim": 10}, "attention_head_dim 10, and the weights show 12"),
        ({"patch_size": [1, 2]}, "patch_size is"),
        ({"patch_size": "1,2,2"}, "patch_size is"),
        ({"eps": float("nan")}, "eps is nan"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"eps": 1e10}, "eps is 10000000000.0"),
        ({"rope_max_seq_len": 1}, "rope_max_seq_len is 1"),
        ({"rope_max_seq_len": 10**9}, "rope_max_seq_len is 1000000000"),
        ({"qk_norm": "layer_norm"}, "qk_norm is"),
        ({"ffn_dim": 64}, "ffn_dim 64, and the weights show 32"),
        ({"_class_name": "FluxTransformer2DModel"}, "holds a `FluxTransformer2DModel`, which is not a policy"),
        ({"_class_name": "REMOVE"}, "holds a `None`"),
        ({"_class_name": ["WanTransformer3DModel"]}, "which is not a policy"),
    ],
)
def test_a_wrong_value_in_config_json_is_named(folder, change_config, changes, said):
    change_config(**changes)
    assert said in refusal(folder)


@pytest.mark.parametrize("kind", ["vace"])
def test_a_control_layer_beyond_the_last_layer_in_a_header_is_refused(transformer, tmp_path):
    header = {"config": json.dumps({"transformer": {"num_heads": 2, "vace_layers": [0, 3]}})}
    assert "vace_layers [0, 3]" in refusal(original_file(transformer, tmp_path / "a.safetensors", metadata=header))


@pytest.mark.parametrize("kind", ["vace"])
@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([0, 1, 2], r"has 3 layers and 2 control blocks, and its configuration has vace_layers [0, 1, 2]"),
        ([1, 2], "must rise from 0"),
        ([2, 0], "must rise from 0"),
        ([0, 3], "must rise from 0 and stay below num_layers"),
        ([0, 10**9], "vace_layers.1 is 1000000000"),
        (["0", "2"], "vace_layers.0 is '0'"),
        ({}, "vace_layers is {}"),
    ],
)
def test_wrong_control_layers_are_named(folder, change_config, layers, said):
    change_config(vace_layers=layers)
    assert said in refusal(folder)


def test_a_configuration_of_the_other_kind_is_refused(folder, change_config, kind):
    other = {"vace": "WanTransformer3DModel", "phantom": "WanVACETransformer3DModel"}[kind]
    change_config(_class_name=other)
    assert f"is configured as {other}, and its weights are {kind}'s" in refusal(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '"text"', "null", "[" * 100_000, "\udcff"])
def test_a_broken_config_json_is_named(folder, content):
    (folder / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert "config.json" in refusal(folder)


def test_a_folder_without_configuration_or_weights_is_named(folder):
    shutil.copytree(folder, folder.with_name("bare"))
    (folder / "config.json").unlink()
    assert "config.json" in refusal(folder)
    (folder.with_name("bare") / "diffusion_pytorch_model.safetensors").unlink()
    assert "holds no .safetensors file" in refusal(folder.with_name("bare"))


@pytest.mark.pipes
@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_a_pipe_in_the_folder_is_refused_and_never_opened(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"{name}" in refusal(folder)
