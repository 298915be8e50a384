"""Text encoder and VAE from the one file that ComfyUI users have of each."""

from __future__ import annotations

import io

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainers.errors import UserError
from trainers.policies.text_file import load_text_encoder
from trainers.policies.vae_file import load_vae
from trainers.policies.wan import WanText

TEXTS = ["two people wave", "a person walks", "waves", "a dog and two people walk by the sea and wave " * 9]


@pytest.fixture(scope="module")
def spiece() -> bytes:
    sentencepiece = pytest.importorskip("sentencepiece", reason="a text encoder in one file needs sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20), model_writer=model, vocab_size=24, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def encoder():
    from transformers import UMT5Config, UMT5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UMT5EncoderModel(UMT5Config(
            vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, relative_attention_num_buckets=8, pad_token_id=0, eos_token_id=1,
        )).eval()


def file_of(encoder, spiece: bytes, path, change=lambda weights: weights):
    weights = {n: t.clone() for n, t in encoder.state_dict().items() if n != "encoder.embed_tokens.weight"}
    save_file({**change(weights), "spiece_model": torch.frombuffer(bytearray(spiece), dtype=torch.uint8)}, path)
    return path


def eight_bits(weights):
    """As `umt5_xxl_fp8_e4m3fn_scaled`: matrices in 8 bits with a scale each."""
    changed = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in weights.items():
        if ".SelfAttention." in name and tensor.ndim == 2 and "bias" not in name:
            scale = tensor.abs().max() / 448
            changed |= {name: (tensor / scale).to(torch.float8_e4m3fn), name.replace(".weight", ".scale_weight"): scale}
        else:
            changed[name] = tensor
    return changed


def test_the_file_gives_the_embeddings_of_the_model_it_was_made_of(encoder, spiece, tmp_path):
    read, tokenizer = load_text_encoder(file_of(encoder, spiece, tmp_path / "umt5.safetensors"), torch.float32)
    ours, theirs = (WanText(model, tokenizer, 64).encode(TEXTS) for model in (read, encoder))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_8_bit_weights_are_widened_with_their_scales(encoder, spiece, tmp_path):
    read, _ = load_text_encoder(file_of(encoder, spiece, tmp_path / "fp8.safetensors", eight_bits), torch.float32)
    for name, tensor in encoder.state_dict().items():
        assert torch.allclose(read.state_dict()[name], tensor, atol=float(tensor.abs().max()) / 16), name


def test_ids_end_with_the_end_token_and_are_padded_with_zeros(encoder, spiece, tmp_path):
    _, tokenizer = load_text_encoder(file_of(encoder, spiece, tmp_path / "umt5.safetensors"), torch.float32)
    found = tokenizer(["waves"], padding="max_length", max_length=12, truncation=True, return_tensors="pt")
    length = int(found.attention_mask.sum())
    assert found.input_ids.shape == (1, 12)
    assert found.input_ids[0, length - 1] == 1 and not found.input_ids[0, length:].any()


def test_a_long_text_is_cut_and_keeps_its_end_token(encoder, spiece, tmp_path):
    _, tokenizer = load_text_encoder(file_of(encoder, spiece, tmp_path / "umt5.safetensors"), torch.float32)
    assert tokenizer([TEXTS[3]], max_length=8).input_ids[0, -1] == 1


@pytest.mark.parametrize("lost, told", [("shared.weight", "no UMT5 text encoder"), ("spiece_model", "no tokenizer in it")])
def test_another_file_is_no_text_encoder(encoder, spiece, tmp_path, lost, told):
    path = file_of(encoder, spiece, tmp_path / "umt5.safetensors")
    save_file({n: t for n, t in load_file(path).items() if n != lost}, path)
    with pytest.raises(UserError, match=told):
        load_text_encoder(path, torch.float32)


def test_a_truncated_text_encoder_is_told(encoder, spiece, tmp_path):
    path = file_of(encoder, spiece, tmp_path / "umt5.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="complete"):
        load_text_encoder(path, torch.float32)


@pytest.fixture(scope="module")
def original_vae(tmp_path_factory):
    """A tiny VAE, and the same in a file by the original's names."""
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKLWan(base_dim=8).eval()
    path = tmp_path_factory.mktemp("vae") / "wan_2.1_vae.safetensors"
    # The converter renames one by one: names made of numbers tell which original name became which of diffusers'.
    originals = original_names()
    renamed = convert_wan_vae_to_diffusers({name: torch.tensor(float(i)) for i, name in enumerate(originals)})
    weights = vae.state_dict()
    save_file({originals[int(place)]: weights[name].clone() for name, place in renamed.items()}, path)
    return vae, path


def original_names() -> list[str]:
    """All names of the original WanVAE (its class: encoder, conv1, conv2, decoder), in any order."""
    def block(at: str, shortcut: bool) -> list[str]:
        parts = ["residual.0.gamma", "residual.2.weight", "residual.2.bias", "residual.3.gamma", "residual.6.weight", "residual.6.bias"]
        return [f"{at}.{p}" for p in parts + ["shortcut.weight", "shortcut.bias"] * shortcut]

    def conv(at: str) -> list[str]:
        return [f"{at}.weight", f"{at}.bias"]

    def middle(side: str) -> list[str]:
        attention = [f"{side}.middle.1.{p}" for p in ("norm.gamma", "to_qkv.weight", "to_qkv.bias", "proj.weight", "proj.bias")]
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


def test_a_vae_file_gives_the_latents_of_the_vae_it_was_made_of(original_vae):
    vae, path = original_vae
    clip = torch.randn(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(load_vae(path).encode(clip).latent_dist.mode(), vae.encode(clip).latent_dist.mode())


def test_a_vae_of_other_latents_is_refused(original_vae, tmp_path):
    weights = load_file(original_vae[1])
    weights["conv2.weight"] = torch.zeros(48, 48, 1, 1, 1)
    save_file(weights, tmp_path / "wan2.2_vae.safetensors")
    with pytest.raises(UserError, match="not Wan 2.1's VAE"):
        load_vae(tmp_path / "wan2.2_vae.safetensors")


def test_another_file_is_no_vae(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="no Wan VAE"):
        load_vae(tmp_path / "a.safetensors")
