"""Wan's VAE between frames and latents."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm

from trainers.errors import UserError
from trainers.policies.vae import ChannelNorm, WanVae


@pytest.fixture
def kind():
    """Of the transformer, which no test here uses."""
    return "vace"


@pytest.fixture
def vae(parts):
    return parts[1]


@pytest.fixture
def latents():
    return torch.randn(5, 16, 2, 2, 3, generator=torch.Generator().manual_seed(0))


def test_latents_are_normalised_with_the_vaes_statistics(vae):
    video = torch.rand(2, 3, 5, 16, 24) * 2 - 1
    raw = vae.encode(video).latent_dist.mode()
    found = WanVae(vae).encode(video)
    for channel in (0, 7, 15):
        expected = (raw[:, channel] - vae.config.latents_mean[channel]) / vae.config.latents_std[channel]
        torch.testing.assert_close(found[:, channel], expected, atol=1e-5, rtol=1e-5)


def test_frames_are_the_decoders_pixels(vae, latents):
    mean, std = (torch.tensor(v).view(1, 16, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        pixels = vae.decode(latents[:1] * std + mean).sample
    frames = WanVae(vae).decode(latents[:1])
    assert frames.shape == (1, 5, 16, 24, 3)
    assert frames.dtype == torch.uint8
    expected = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1) * 255
    assert (frames.float() - expected).abs().max() <= 0.5 + 1e-2


def test_slices_change_nothing(vae, latents):
    together, sliced = WanVae(vae).decode(latents), WanVae(vae, pixels=1).decode(latents)
    assert (together.int() - sliced.int()).abs().max() <= 1
    video = torch.rand(3, 3, 5, 16, 24)
    torch.testing.assert_close(WanVae(vae).encode(video), WanVae(vae, pixels=1).encode(video), atol=1e-5, rtol=1e-5)


def test_tiles_change_little_and_small_frames_not_at_all(vae, monkeypatch):
    monkeypatch.setattr("trainers.policies.vae.TILE", 64)
    monkeypatch.setattr("trainers.policies.vae.STRIDE", 48)
    whole, tiled = WanVae(vae), WanVae(vae)
    tiled.tiled = True
    for height, share in ((48, 0.0), (112, 0.35)):
        latents = torch.randn(1, 16, 2, height // 8, 8, generator=torch.Generator().manual_seed(0))
        expected, found = (v.decode(latents)[0].float() for v in (whole, tiled))
        assert (found - expected).abs().mean() <= share * expected.std() + 1e-3
        video = expected.permute(3, 0, 1, 2)[None] / 127.5 - 1
        expected, found = whole.encode(video), tiled.encode(video)
        assert (found - expected).abs().mean() <= share * expected.std() + 1e-5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("pixels", [None, 1])
def test_latents_that_are_not_finite_are_refused_instead_of_becoming_black(vae, latents, value, pixels):
    latents[3, 5, 1, 1, 2] = value
    with pytest.raises(UserError, match="pixels that are not finite .*the latents are not; lower the LoRA's strength"):
        WanVae(vae, pixels).decode(latents)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_frames_that_are_not_finite_are_refused(vae, value):
    video = torch.zeros(2, 3, 5, 16, 24)
    video[1, 0, 3, 7, 7] = value
    with pytest.raises(UserError, match="latents that are not finite .*the frames to encode are not"):
        WanVae(vae).encode(video)


def test_a_vae_with_damaged_weights_is_named(vae, latents):
    vae.decoder.conv_out.bias.data[1] = float("nan")
    vae.encoder.conv_in.bias.data[1] = float("nan")
    with pytest.raises(UserError, match="the VAE's weights are damaged"):
        WanVae(vae).decode(latents)
    with pytest.raises(UserError, match="the VAE's weights are damaged"):
        WanVae(vae).encode(torch.zeros(1, 3, 1, 16, 16))


@pytest.mark.parametrize(
    ("channel_first", "images", "shape"),
    [(True, False, (2, 6, 3, 4, 5)), (True, True, (2, 6, 4, 5)), (False, False, (2, 3, 6))],
)
def test_channel_norm_is_diffusers_norm(channel_first, images, shape):
    original = WanRMS_norm(6, channel_first=channel_first, images=images)
    original.gamma.data = torch.rand_like(original.gamma)
    x = torch.randn(shape)
    x[0] = 0
    torch.testing.assert_close(ChannelNorm(original)(x), original(x), atol=1e-6, rtol=1e-5)


def test_the_vaes_weights_keep_their_names(vae):
    names = set(vae.state_dict())
    WanVae(vae)
    assert set(vae.state_dict()) == names
    assert not any(isinstance(m, WanRMS_norm) for m in vae.modules())
