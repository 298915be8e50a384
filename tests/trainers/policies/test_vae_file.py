"""Wan 2.1's VAE from a folder, and from the one file that ComfyUI users have."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.errors import UserError
from trainers.policies.vae import WanVae
from trainers.policies.vae_file import load_vae


@pytest.fixture(scope="module")
def original_vae(tmp_path_factory):
    """A tiny VAE, and the same in a file by the original's names."""
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKLWan(base_dim=8).eval()
    path = tmp_path_factory.mktemp("vae") / "wan_2.1_vae.safetensors"
    # The converter renames one by one: tensors that hold their number show which name became which.
    originals = original_names()
    renamed = convert_wan_vae_to_diffusers({name: torch.tensor(float(i)) for i, name in enumerate(originals)})
    weights = vae.state_dict()
    save_file({originals[int(place)]: weights[name].clone() for name, place in renamed.items()}, path)
    return vae, path


def original_names() -> list[str]:
    """All names of the original WanVAE (its class: encoder, conv1, conv2, decoder), in any order."""

    def block(at: str, shortcut: bool) -> list[str]:
        parts = [
            "residual.0.gamma",
            "residual.2.weight",
            "residual.2.bias",
            "residual.3.gamma",
            "residual.6.weight",
            "residual.6.bias",
        ]
        return [f"{at}.{p}" for p in parts + ["shortcut.weight", "shortcut.bias"] * shortcut]

    def conv(at: str) -> list[str]:
        return [f"{at}.weight", f"{at}.bias"]

    def middle(side: str) -> list[str]:
        attention = [
            f"{side}.middle.1.{p}" for p in ("norm.gamma", "to_qkv.weight", "to_qkv.bias", "proj.weight", "proj.bias")
        ]
        return block(f"{side}.middle.0", False) + attention + block(f"{side}.middle.2", False)

    names = conv("conv1") + conv("conv2")
    for side in ("encoder", "decoder"):
        names += conv(f"{side}.conv1") + middle(side) + [f"{side}.head.0.gamma", *conv(f"{side}.head.2")]
    at = 0
    for level, change in enumerate((False, True, True, False)):
        for number in range(2):
            names += block(f"encoder.downsamples.{at}", number == 0 and change)
            at += 1
        if level < 3:
            names += conv(f"encoder.downsamples.{at}.resample.1")
            if level > 0:
                names += conv(f"encoder.downsamples.{at}.time_conv")
            at += 1
    at = 0
    for level, change in enumerate((False, True, False, False)):
        for number in range(3):
            names += block(f"decoder.upsamples.{at}", number == 0 and change)
            at += 1
        if level < 3:
            names += conv(f"decoder.upsamples.{at}.resample.1")
            if level < 2:
                names += conv(f"decoder.upsamples.{at}.time_conv")
            at += 1
    return names


@pytest.fixture(scope="module")
def clip():
    return torch.rand(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def change(original_vae, tmp_path):
    """Writes the file with some weights changed, or left out where they are None."""

    def write(changes, prefix=""):
        weights = {n: t for n, t in (load_file(original_vae[1]) | changes).items() if t is not None}
        save_file({prefix + name: tensor for name, tensor in weights.items()}, tmp_path / "vae.safetensors")
        return tmp_path / "vae.safetensors"

    return write


@pytest.mark.parametrize("prefix", ["", "model.", "module._orig_mod.", "vae.", "first_stage_model."])
def test_a_file_gives_the_latents_and_frames_of_the_vae_it_was_made_of(original_vae, change, clip, prefix):
    read = load_vae(change({}, prefix))
    with torch.no_grad():
        latents = [vae.encode(clip).latent_dist.mode() for vae in (read, original_vae[0])]
        frames = [vae.decode(latents[0]).sample for vae in (read, original_vae[0])]
    assert torch.equal(*latents) and torch.equal(*frames)


def test_a_file_in_half_precision_is_read_as_float32_and_frozen(original_vae, change):
    vae = load_vae(change({name: tensor.bfloat16() for name, tensor in load_file(original_vae[1]).items()}))
    assert {(p.dtype, p.requires_grad) for p in vae.parameters()} == {(torch.float32, False)} and not vae.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv2.weight": torch.zeros(48, 48, 1, 1, 1)}, "VAE with 48 latent channels: it is not Wan 2.1's VAE"),
        ({"encoder.conv1.weight": torch.zeros(8, 4, 3, 3, 3)}, "reads 4 and writes 3 channels"),
        ({"conv2.weight": None}, "no Wan VAE"),
        ({"decoder.middle.0.residual.2.weight": None}, "lacks decoder.mid_block.resnets.0.conv1.weight"),
        (
            {"decoder.middle.0.residual.2.weight": torch.ones(32, 32, 3, 3, 1)},
            r"other shapes: decoder\.mid_block\S* is \[32, 32, 3, 3, 1\], expected \[32, 32, 3, 3, 3\]",
        ),
    ],
    ids=["Wan 2.2's", "with alpha", "another file", "incomplete", "other shapes"],
)
def test_another_file_is_refused_with_the_reason(change, changes, message):
    with pytest.raises(UserError, match=message):
        load_vae(change(changes))


@pytest.mark.parametrize(("value", "damage"), [(float("nan"), "not finite"), (0.0, "only zeros")])
def test_damaged_weights_are_named(change, value, damage):
    name = "decoder.middle.0.residual.2.weight"
    with pytest.raises(UserError, match=f"vae.safetensors is damaged: {name} holds .*{damage}"):
        load_vae(change({name: torch.full((32, 32, 3, 3, 3), value)}))


def test_a_pickled_file_gives_the_same_vae(original_vae, tmp_path):
    torch.save(load_file(original_vae[1]), tmp_path / "Wan2.1_VAE.pth")
    read = load_vae(tmp_path / "Wan2.1_VAE.pth")
    assert all(torch.equal(value, read.state_dict()[n]) for n, value in original_vae[0].state_dict().items())


def test_a_truncated_file_is_named(change):
    path = change({})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot read the VAE .*give wan_2.1_vae.safetensors, downloaded to its end"):
        load_vae(path)


def test_a_folder_that_lacks_weights_is_not_filled_with_noise(original_vae, tmp_path):
    original_vae[0].save_pretrained(tmp_path / "vae")
    assert torch.equal(load_vae(tmp_path / "vae").quant_conv.weight, original_vae[0].quant_conv.weight)
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if n != "quant_conv.weight"}, path, {"format": "pt"})
    with pytest.raises(UserError, match="lacks quant_conv.weight"):
        load_vae(tmp_path / "vae")


@pytest.fixture
def folder(original_vae, tmp_path):
    original_vae[0].save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def test_a_folder_and_its_file_give_the_vae_that_diffusers_wrote(original_vae, folder):
    for place in (folder, folder / "diffusion_pytorch_model.safetensors"):
        read = load_vae(place)
        assert read.config.base_dim == 8
        assert all(torch.equal(value, read.state_dict()[n]) for n, value in original_vae[0].state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z_dim": 48}, "latents_mean must have 48 entries"),
        ({"z_dim": 48, "latents_mean": None, "latents_std": None}, "VAE with 48 latent channels"),
        ({"base_dim": 10**9}, "base_dim is 1000000000"),
        ({"base_dim": "8"}, "base_dim is '8'"),
        ({"base_dim": 16}, "has weights of other shapes"),
        ({"num_res_blocks": 10**6}, "num_res_blocks is 1000000"),
        ({"dim_mult": {"a": 1}}, "dim_mult is {'a': 1}"),
        ({"dim_mult": []}, "dim_mult is"),
        ({"temperal_downsample": [True]}, "one entry less than dim_mult"),
        ({"latents_std": [0.0] * 16}, "latents_std.0 is 0.0"),
        ({"latents_mean": [float("nan")] * 16}, "latents_mean.0 is nan"),
        ({"is_residual": True}, "is not of Wan 2.1's VAE"),
        ({"_class_name": "AutoencoderKL"}, "_class_name is 'AutoencoderKL'"),
    ],
)
def test_a_wrong_value_in_config_json_is_named(folder, changes, message):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=message):
        load_vae(folder)


def test_comfyuis_own_vae_makes_the_same_latents_and_frames(original_vae, clip, tmp_path, run_core):
    save_file({"clip": clip}, tmp_path / "given.safetensors")
    run_core("core_vae.py", original_vae[1], tmp_path / "given.safetensors", tmp_path / "found.safetensors")
    theirs = load_file(tmp_path / "found.safetensors")
    vae = WanVae(load_vae(original_vae[1]))
    latents = vae.encode(clip)
    assert (latents - theirs["latents"]).norm() < 1e-4 * theirs["latents"].norm()
    # Frames are rounded to 256 levels here.
    assert (vae.decode(latents)[0] / 255 - theirs["frames"]).abs().max() < 0.51 / 255


def test_a_file_by_diffusers_names_needs_no_configuration_beside_it(original_vae, folder, tmp_path):
    alone = tmp_path / "alone.safetensors"
    (folder / "diffusion_pytorch_model.safetensors").rename(alone)
    read = load_vae(alone)
    assert all(torch.equal(value, read.state_dict()[n]) for n, value in original_vae[0].state_dict().items())
    save_file(load_file(alone) | {"post_quant_conv.weight": torch.ones(48, 48, 1, 1, 1)}, alone)
    with pytest.raises(UserError, match="VAE with 48 latent channels"):
        load_vae(alone)
