"""From a folder or a file to a policy: where its parts are found, and what is refused."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from trainers.config import BUILT_IN, TINYWORLD_WEIGHTS, PolicyConfig
from trainers.errors import UserError
from trainers.policies.base import Guidance, VideoSize
from trainers.policies.load import count_parameters, load_policy, native_size, policy_of, recognise
from trainers.policies.parts import find_parts
from trainers.tinyworld import models as tinyworld

from .conftest import original_file, same_weights

HEADER = {"config": json.dumps({"transformer": {"num_heads": 2, "vace_layers": [0, 2]}})}


@pytest.fixture
def folder(parts, tmp_path):
    for name, part in zip(("transformer", "vae", "text_encoder", "tokenizer"), parts, strict=True):
        part.save_pretrained(tmp_path / "model" / name)
    return tmp_path / "model"


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


def test_a_file_in_the_original_naming_becomes_the_same_policy(folder, parts, size, make_item, kind):
    path = original_file(parts[0], folder / "wan_vace.safetensors", metadata=HEADER)
    ours, theirs = load_policy(path), load_policy(folder)
    assert recognise(path) == kind
    assert same_weights(ours.transformer, theirs.transformer)
    batch = ours.batch([ours.encode(make_item(), size)])
    latents = torch.randn(1, *ours.latent_shape(size, 2))
    with torch.no_grad():
        torch.testing.assert_close(
            *(p.velocity(latents, torch.tensor([500]), batch, Guidance(2.0)) for p in (ours, theirs)), atol=1e-6, rtol=0
        )


def test_text_encoder_and_vae_may_lie_elsewhere(folder, size, make_item, tmp_path):
    together = load_policy(folder)
    for name in ("vae", "text_encoder", "tokenizer"):
        (folder / name).rename(tmp_path / name)
    with pytest.raises(UserError, match=r"(?s)text_encoder: .*vae: .*policy\.text_encoder"):
        find_parts(folder)
    config = PolicyConfig(source=str(folder), text_encoder=str(tmp_path / "text_encoder"), vae=str(tmp_path / "vae"))
    ours, theirs = (policy.encode(make_item(), size) for policy in (policy_of(config), together))
    assert torch.equal(ours.text, theirs.text)
    assert torch.equal(ours.control, theirs.control)


def test_the_folder_of_an_original_release_has_its_other_parts_by_their_names(tmp_path):
    for name in ("config.json", "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth"):
        (tmp_path / name).touch()
    found = find_parts(tmp_path)
    assert found.transformer == tmp_path and found.vae.name == "Wan2.1_VAE.pth"
    assert found.text_encoder.name == "models_t5_umt5-xxl-enc-bf16.pth"


def test_a_transformers_own_folder_is_a_source_too(folder, parts, kind):
    assert recognise(folder / "transformer") == kind
    loaded = load_policy(folder / "transformer", text_encoder=folder / "text_encoder", vae=folder / "vae")
    assert same_weights(loaded.transformer, parts[0])


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_models_share_a_text_encoder_and_a_vae(name):
    policy = load_policy(name)
    assert policy.kind == recognise(name) == BUILT_IN[name]
    parts, other = find_parts(name), find_parts("tinyworld")
    assert (parts.text_encoder, parts.vae) == (other.text_encoder, other.vae)


def test_the_built_in_tokenizer_names_a_class_that_every_version_of_transformers_has():
    config = json.loads(
        (TINYWORLD_WEIGHTS / "vace" / "tokenizer" / "tokenizer_config.json").read_text(encoding="utf-8")
    )
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_parameters_are_counted_without_loading(folder, parts):
    expected = sum(p.numel() for p in parts[0].parameters())
    original_file(parts[0], folder / "transformer" / "variant.fp16.safetensors")
    assert count_parameters(folder) == expected


@pytest.mark.parametrize(
    ("width", "size"),
    [(5120, VideoSize(720, 1280, 81)), (1536, VideoSize(480, 832, 81)), (128, VideoSize(48, 80, 9))],
)
def test_the_native_size_is_that_of_the_published_model_of_this_width(tmp_path, width, size):
    shapes = {
        "patch_embedding.weight": (width, 16, 1, 2, 2),
        "head.head.weight": (64, width),
        "text_embedding.0.weight": (width, 2),
        "time_embedding.0.weight": (width, 2),
        "blocks.0.ffn.0.weight": (2, width),
    }
    path = tmp_path / "m.safetensors"
    save_file({name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}, path)
    assert native_size(path) == size


def test_the_native_size_of_the_built_in_models_is_tinyworlds():
    expected = VideoSize(tinyworld.HEIGHT, tinyworld.WIDTH, tinyworld.FRAMES)
    assert [native_size(name) for name in BUILT_IN] == [expected, expected]


def test_a_half_precision_policy_returns_float32(folder, size, make_item):
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


def test_all_missing_parts_are_listed(folder):
    (folder / "vae").rename(folder / "elsewhere")
    (folder / "tokenizer").rename(folder / "elsewhere2")
    with pytest.raises(UserError, match=r"(?s)vae: .*tokenizer: ") as error:
        load_policy(folder)
    assert "transformer:" not in str(error.value)


@pytest.mark.parametrize("source", ["nothing", "x" * 5000, "a\0b"])
def test_a_source_that_does_not_exist_is_refused(tmp_path, source):
    for attempt in (load_policy, find_parts, recognise, native_size):
        with pytest.raises(UserError, match="no policy at"):
            attempt(f"{tmp_path}/{source}")


REWARD = TINYWORLD_WEIGHTS / "reward" / "identity_reward"


@pytest.mark.parametrize(
    "part, found",
    [
        ("", "is a reward, not a policy; give it as --reward"),
        ("checkpoint-1183", f"is a part of a reward, not a policy; give its folder {REWARD} as --reward"),
        ("checkpoint-1183/non_lora_state_dict.safetensors", f"is a part of a reward.* folder {REWARD} as --reward"),
        ("model_config.json", f"is a part of a reward.* folder {REWARD} as --reward"),
    ],
)
def test_a_reward_in_place_of_a_policy_is_named(part, found):
    with pytest.raises(UserError, match=found):
        find_parts(REWARD / part)


@pytest.mark.parametrize("name", ["adapter_model", "non_lora_state_dict"])
def test_a_file_of_a_reward_without_its_folder_is_named_too(tmp_path, name):
    file = shutil.copy(REWARD / "checkpoint-1183" / f"{name}.safetensors", tmp_path)
    with pytest.raises(UserError, match="reward.*, not a Wan transformer; give the reward's whole folder as --reward"):
        find_parts(file)


@pytest.mark.parametrize("config", ["{}", "no json"])
def test_a_policy_with_a_file_named_as_a_reward_s_is_none(folder, config):
    (folder / "model_config.json").write_text(config)
    assert find_parts(folder).transformer == folder / "transformer"


def test_a_policy_in_the_folder_of_a_reward_is_none(folder):
    shutil.copy(REWARD / "model_config.json", folder.parent)
    assert find_parts(folder).transformer == folder / "transformer"


@pytest.mark.pipes
@pytest.mark.timeout(10)
def test_pipes_and_devices_are_refused_and_never_opened(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", "/dev/zero"):
        for parts in ({"source": place}, {"source": folder, "vae": place}, {"source": folder, "text_encoder": place}):
            with pytest.raises(UserError, match="is neither a file nor a folder"):
                find_parts(**parts)
        with pytest.raises(UserError, match="not a regular file"):
            recognise(place)


@pytest.mark.parametrize("part", ["vae", "text_encoder", "transformer"])
def test_a_part_with_a_broken_configuration_is_named(folder, part):
    (folder / part / "config.json").write_text("{")
    with pytest.raises(UserError, match=rf"cannot read .*{part}.config\.json"):
        load_policy(folder)


@pytest.mark.parametrize("part, what", [("vae", "a VAE of Wan 2.1"), ("text_encoder", "a UMT5 text encoder")])
def test_another_part_given_as_the_policy_is_named(part, what):
    source = next((TINYWORLD_WEIGHTS / "vace" / part).glob("*.safetensors"))
    with pytest.raises(UserError, match=f"is {what}, not a Wan transformer"):
        load_policy(source)
