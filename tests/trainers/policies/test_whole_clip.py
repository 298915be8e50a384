"""Whole clips through the VAE, against diffusers' frame by frame."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan

from trainers.policies import vae as vae_module
from trainers.policies.vae import WanVae
from trainers.policies.whole_clip import WholeClips


@pytest.fixture(scope="module")
def vae():
    """A random VAE of odd widths whose norms have any sign."""
    torch.manual_seed(0)
    model = AutoencoderKLWan(
        base_dim=4,
        z_dim=3,
        dim_mult=[1, 2, 3],
        num_res_blocks=2,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * 3,
        latents_std=[1.0] * 3,
    )
    for name, weight in model.named_parameters():
        weight.data = torch.randn_like(weight) * (1 if name.endswith("gamma") else 0.2)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("frames", [1, 2, 4])
@pytest.mark.parametrize("clips", [1, 3])
def test_decoding_is_that_of_diffusers(vae, frames, clips):
    latents = torch.randn(clips, 3, frames, 4, 6)
    expected = vae.decode(latents).sample
    assert expected.abs().max() == 1
    assert (expected.abs() < 1).any()
    WanVae(vae)
    torch.testing.assert_close(WholeClips(vae).decode(latents), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("frames", [1, 5, 13])
@pytest.mark.parametrize("clips", [1, 3])
def test_encoding_is_that_of_diffusers(vae, frames, clips):
    videos = torch.rand(clips, 3, frames, 16, 24) * 2 - 1
    expected = vae.encode(videos).latent_dist.mode()
    WanVae(vae)
    torch.testing.assert_close(WholeClips(vae).encode(videos), expected, atol=1e-4, rtol=1e-4)


def test_without_onednn_the_numbers_are_the_same(vae, monkeypatch):
    WanVae(vae)
    latents = torch.randn(1, 3, 3, 4, 6)
    expected = WholeClips(vae).decode(latents)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    torch.testing.assert_close(WholeClips(vae).decode(latents), expected, atol=1e-4, rtol=1e-4)


def test_a_large_clip_is_left_to_diffusers_whose_memory_does_not_grow_with_its_frames(vae, monkeypatch):
    used = []
    monkeypatch.setattr(vae_module, "WholeClips", lambda model: used.append(model) or WholeClips(model))
    latents = torch.zeros(1, 3, 2, 4, 6)
    WanVae(vae).decode(latents)
    assert used == [vae]
    monkeypatch.setattr(vae_module, "WHOLE_CLIP_VALUES", 5 * 16 * 24 * 4 - 1)
    WanVae(vae).decode(latents)
    assert used == [vae]
