import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.config import BUILT_IN, TINYWORLD_WEIGHTS, PolicyConfig
from trainers.errors import UserError
from trainers.lora.names import to_original
from trainers.policies.base import Guidance
from trainers.policies.load import find_parts, infer_config, load_policy, load_transformer, policy_of, recognise

from .conftest import TRANSFORMER

HINTS = json.dumps({"transformer": {"num_heads": 2, "vace_layers": [0, 2]}})


@pytest.fixture
def folder(parts, tmp_path):
    for name, part in zip(("transformer", "vae", "text_encoder", "tokenizer"), parts, strict=True):
        part.save_pretrained(tmp_path / "model" / name)
    return tmp_path / "model"


def original_file(transformer, path, prefix="", metadata=None):
    state = {prefix + to_original(name): value.contiguous() for name, value in transformer.state_dict().items()}
    save_file(state, path, metadata=metadata)
    return path


def same_weights(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_diffusers_folder_becomes_a_frozen_policy(folder, parts, policy, size, make_item, kind):
    loaded = load_policy(folder)
    assert same_weights(loaded.transformer, parts[0])
    assert loaded.kind == recognise(folder) == kind
    assert loaded.text.length == 12
    assert not any(p.requires_grad for p in loaded.transformer.parameters())
    assert not loaded.transformer.training
    ours, theirs = loaded.encode(make_item(), size), policy.encode(make_item(), size)
    assert torch.equal(ours.control, theirs.control)
    assert torch.equal(ours.text, theirs.text)


def test_a_file_in_the_originals_naming_becomes_the_same_policy(folder, parts, size, make_item):
    path = original_file(parts[0], folder / "wan_vace.safetensors", metadata={"config": HINTS})
    ours, theirs = load_policy(path), load_policy(folder)
    assert same_weights(ours.transformer, theirs.transformer)
    batch = ours.batch([ours.encode(make_item(), size)])
    latents = torch.randn(1, *ours.latent_shape(size, 2))
    with torch.no_grad():
        torch.testing.assert_close(
            *(p.velocity(latents, torch.tensor([500]), batch, Guidance(2.0)) for p in (ours, theirs)), atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model."])
def test_a_files_prefix_is_taken_off(parts, tmp_path, prefix):
    path = original_file(parts[0], tmp_path / "a.safetensors", prefix, {"config": HINTS})
    assert same_weights(load_transformer(path), parts[0])


def test_a_config_beside_the_file_tells_what_shapes_cannot(parts, tmp_path):
    path = original_file(parts[0], tmp_path / "a.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"dim": 24, "num_heads": 2, "vace_layers": [0, 2], "eps": 1e-5}))
    loaded = load_transformer(path)
    assert loaded.config.num_attention_heads == 2
    assert getattr(loaded.config, "vace_layers", [0, 2]) == [0, 2]
    assert loaded.config.eps == 1e-5


@pytest.mark.parametrize(
    ("class_name", "dim", "layers", "placed"),
    [
        ("WanVACETransformer3DModel", 1536, 30, list(range(0, 30, 2))),
        ("WanVACETransformer3DModel", 5120, 40, [0, 5, 10, 15, 20, 25, 30, 35]),
        ("WanTransformer3DModel", 1536, 30, None),
        ("WanTransformer3DModel", 5120, 40, None),
    ],
)
def test_the_published_sizes_are_recognised(class_name, dim, layers, placed):
    import diffusers
    from accelerate import init_empty_weights

    config = {"num_attention_heads": dim // 128, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": layers}
    if placed:
        config["vace_layers"] = placed
    with init_empty_weights():
        model = getattr(diffusers, class_name)(**config)
        shapes = {to_original(n): tuple(p.shape) for n, p in model.state_dict().items()}
    found = infer_config(shapes, {})
    assert {key: found[key] for key in config} == config
    assert (found["text_dim"], found["freq_dim"], found["out_channels"]) == (4096, 256, 16)
    assert found.get("vace_in_channels") == (96 if placed else None)
    assert len({n for n in shapes if n.startswith("vace_blocks.") and "before_proj" in n}) == (2 if placed else 0)


@pytest.mark.parametrize("from_file", [False, True])
def test_a_transformer_with_other_inputs_is_refused(tmp_path, from_file):
    """Image-to-video is a Wan transformer of the same class."""
    from diffusers import WanTransformer3DModel

    path, other = tmp_path / "other" / "transformer", WanTransformer3DModel(**TRANSFORMER, in_channels=36, image_dim=8)
    other.save_pretrained(path)
    if from_file:
        path = original_file(other, tmp_path / "other.safetensors")
    for attempt in (load_transformer, lambda path: recognise(path if from_file else path.parent)):
        with pytest.raises(UserError, match="inputs that neither VACE nor Phantom have"):
            attempt(path)


def test_text_encoder_and_vae_may_lie_apart(folder, size, make_item, tmp_path):
    whole = load_policy(folder)
    for name in ("vae", "text_encoder", "tokenizer"):
        (folder / name).rename(tmp_path / name)
    with pytest.raises(UserError, match=r"(?s)text_encoder: .*vae: .*policy\.text_encoder"):
        find_parts(folder)
    config = PolicyConfig(source=str(folder), text_encoder=str(tmp_path / "text_encoder"), vae=str(tmp_path / "vae"))
    ours, theirs = (policy.encode(make_item(), size) for policy in (policy_of(config), whole))
    assert torch.equal(ours.text, theirs.text)
    assert torch.equal(ours.control, theirs.control)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_models_share_a_text_encoder_and_a_vae(name):
    policy = load_policy(name)
    assert policy.kind == recognise(name) == BUILT_IN[name]
    parts, other = find_parts(name), find_parts("tinyworld")
    assert (parts.text_encoder, parts.vae) == (other.text_encoder, other.vae)


def test_the_built_in_tokenizer_names_a_class_of_every_transformers_there_is():
    told = json.loads((TINYWORLD_WEIGHTS / "vace" / "tokenizer" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize("from_file", [False, True])
def test_half_precision_keeps_the_parts_that_need_float32(folder, parts, from_file):
    path = folder / "transformer"
    if from_file:
        path = original_file(parts[0], folder / "a.safetensors", metadata={"config": HINTS})
    loaded = load_transformer(path, torch.bfloat16)
    assert loaded.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert loaded.blocks[0].norm2.weight.dtype == torch.float32
    assert loaded.scale_shift_table.dtype == torch.float32
    assert loaded.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32


def test_a_half_precision_policy_answers_in_float32(folder, size, make_item):
    policy = load_policy(folder, torch.bfloat16)
    assert policy.dtype == torch.bfloat16
    assert policy.vae.model.dtype == torch.float32
    conditions = [policy.encode(make_item(), size)]
    with torch.no_grad():
        velocity = policy.velocity(
            torch.randn(1, *policy.latent_shape(size, 2)), torch.tensor([500]), policy.batch(conditions), Guidance(2.0)
        )
    assert velocity.dtype == torch.float32
    assert torch.isfinite(velocity).all()


def test_everything_missing_is_listed(folder):
    (folder / "vae").rename(folder / "elsewhere")
    (folder / "tokenizer").rename(folder / "elsewhere2")
    with pytest.raises(UserError, match=r"(?s)vae: .*tokenizer: ") as error:
        load_policy(folder)
    assert "transformer:" not in str(error.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no policy at"):
        load_policy(tmp_path / "nothing")


@pytest.mark.parametrize("content", [b"", b"\x10\x00\x00\x00\x00\x00\x00\x00not a header"])
def test_a_broken_file_is_named(tmp_path, content):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.safetensors"):
        load_transformer(path)


def test_a_file_of_something_else_is_refused(tmp_path):
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="not a Wan transformer"):
        load_transformer(tmp_path / "other.safetensors")


def test_an_incomplete_file_is_refused(parts, tmp_path):
    state = {
        to_original(n): v.contiguous() for n, v in parts[0].state_dict().items() if n != "blocks.1.attn1.to_q.weight"
    }
    save_file(state, tmp_path / "part.safetensors", metadata={"config": HINTS})
    with pytest.raises(UserError, match=r"(?s)part\.safetensors.*to_q"):
        load_transformer(tmp_path / "part.safetensors")


def test_a_folder_that_lacks_weights_is_not_filled_with_noise(folder):
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if n != "proj_out.weight"}, path, {"format": "pt"})
    with pytest.raises(UserError, match="lacks proj_out.weight"):
        load_transformer(folder / "transformer")


def test_a_broken_part_is_named(folder):
    (folder / "vae" / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot load the VAE"):
        load_policy(folder)


@pytest.mark.parametrize("kind", ["vace"])
def test_control_blocks_that_cannot_be_placed_are_refused(parts, tmp_path):
    path = original_file(parts[0], tmp_path / "a.safetensors", metadata={"config": '{"transformer": {"num_heads": 2}}'})
    with pytest.raises(UserError, match="after which of the 3 layers the 2 control blocks act"):
        load_transformer(path)
