import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm
from diffusers.models.embeddings import get_timestep_embedding
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainers.errors import UserError
from trainers.pictures.reading import read_pixels
from trainers.policies.wan import (
    Cache,
    ChannelNorm,
    TimeFeatures,
    WanText,
    WanVae,
    clean_prompt,
    fit_on_white,
    fit_on_white_sharply,
)


@pytest.fixture
def kind():
    """Of the transformer, that no test here looks at."""
    return "vace"


def test_transparency_becomes_white(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[0, 0] = [10, 20, 30, 255]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = read_pixels(tmp_path / "a.png")
    assert picture[0, 0].tolist() == [10, 20, 30]
    assert picture[1, 1].tolist() == [255, 255, 255]
    assert np.array_equal(read_pixels(pixels), picture)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA", "I;16"])
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new(mode, (5, 3)).save(path)
    picture = read_pixels(path)
    assert picture.shape == (3, 5, 3)
    assert picture.dtype == np.uint8


@pytest.mark.parametrize("content", [None, b"", b"no picture at all"])
def test_an_unreadable_reference_is_named_with_a_remedy(tmp_path, content):
    path = tmp_path / "ann.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"ann\.png.*give an existing PNG"):
        read_pixels(path)


def test_a_truncated_picture_is_refused(tmp_path):
    path = tmp_path / "ann.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"ann\.png"):
        read_pixels(path)


def test_pixels_of_a_wrong_type_are_refused():
    with pytest.raises(UserError, match="float32 is no picture"):
        read_pixels(np.zeros((4, 4, 3), np.float32))


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([fit_on_white, fit_on_white_sharply]))
@settings(max_examples=60, deadline=None)
def test_the_whole_picture_fits_centred_on_white(rows, columns, fit):
    canvas = fit(np.zeros((rows, columns, 3), np.uint8), 32, 48)
    dark = (canvas[0] < 0).nonzero()
    top, left = dark.min(0).values.tolist()
    bottom, right = dark.max(0).values.tolist()
    assert canvas.shape == (3, 32, 48)
    assert abs(top - (31 - bottom)) <= 1
    assert abs(left - (47 - right)) <= 1
    scale = min(32 / rows, 48 / columns)
    assert abs((bottom - top + 1) - max(1, rows * scale)) <= 1
    assert abs((right - left + 1) - max(1, columns * scale)) <= 1


def test_a_picture_of_the_canvas_size_keeps_its_pixels():
    picture = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    for fit in (fit_on_white, fit_on_white_sharply):
        torch.testing.assert_close(
            (fit(picture, 32, 48) + 1) * 127.5, torch.from_numpy(picture).permute(2, 0, 1).float()
        )


def test_the_sharp_fit_averages_what_a_smaller_picture_cannot_show():
    """A checkerboard of single pixels is grey from afar; without antialias some of its pixels would be picked."""
    checkers = np.indices((96, 96)).sum(0) % 2 * np.uint8(255)
    picture = np.repeat(checkers[..., None].astype(np.uint8), 3, axis=2)
    assert fit_on_white_sharply(picture, 32, 48)[:, 2:-2, 10:-10].abs().max() < 0.1
    assert fit_on_white(picture, 32, 48)[:, 2:-2, 10:-10].abs().max() > 0.9


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  a   man \n walks ", "a man walks"),
        ("rock &amp; roll", "rock & roll"),
        ("rock &amp;amp; roll", "rock & roll"),
        ("", ""),
    ],
)
def test_prompts_are_cleaned(text, clean):
    assert clean_prompt(text) == clean


def test_text_embeddings_are_those_of_diffusers_pipeline(parts, pipelines):
    vae, text, tokenizer = parts[1:]
    prompts = ["a man   and a woman", "", "two people &amp; a table"]
    pipeline = pipelines[0](tokenizer=tokenizer, text_encoder=text, vae=vae, scheduler=None, transformer=None)
    theirs = pipeline._get_t5_prompt_embeds(prompts, max_sequence_length=12, device="cpu")
    ours = torch.stack(WanText(text, tokenizer, 12).encode(prompts))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert torch.equal(ours[1, 1:], torch.zeros(11, 16))


def test_a_text_gives_the_same_numbers_in_any_company(parts):
    text, tokenizer = parts[2:]
    alone = WanText(text, tokenizer, 12).encode(["a man walk"])[0]
    together = WanText(text, tokenizer, 12).encode(["two people sit at the table", "a man walk"])[1]
    assert torch.equal(alone, together)


def test_too_long_a_text_is_cut(parts):
    assert WanText(parts[2], parts[3], 12).encode(["man " * 50])[0].shape == (12, 16)


def test_latents_are_normalised_with_the_vaes_statistics(parts):
    vae = parts[1]
    video = torch.rand(2, 3, 5, 16, 24) * 2 - 1
    raw = vae.encode(video).latent_dist.mode()
    found = WanVae(vae).encode(video)
    for channel in (0, 7, 15):
        expected = (raw[:, channel] - vae.config.latents_mean[channel]) / vae.config.latents_std[channel]
        torch.testing.assert_close(found[:, channel], expected, atol=1e-5, rtol=1e-5)


def test_frames_are_the_decoders_pixels(parts):
    vae = parts[1]
    latents = torch.randn(1, 16, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 16, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        pixels = vae.decode(latents * std + mean).sample
    frames = WanVae(vae).decode(latents)
    assert frames.shape == (1, 5, 16, 24, 3)
    assert frames.dtype == torch.uint8
    expected = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 4, 1) * 255
    assert (frames.float() - expected).abs().max() <= 0.5 + 1e-2


def test_slices_change_nothing(parts):
    latents = torch.randn(5, 16, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    whole = WanVae(parts[1]).decode(latents)
    sliced = WanVae(parts[1], pixels=1).decode(latents)
    assert (whole.int() - sliced.int()).abs().max() <= 1
    video = torch.rand(3, 3, 5, 16, 24)
    torch.testing.assert_close(
        WanVae(parts[1]).encode(video), WanVae(parts[1], pixels=1).encode(video), atol=1e-5, rtol=1e-5
    )


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


def test_the_vaes_weights_keep_their_names(parts):
    names = set(parts[1].state_dict())
    WanVae(parts[1])
    assert set(parts[1].state_dict()) == names
    assert not any(isinstance(m, WanRMS_norm) for m in parts[1].modules())


def test_time_features_are_exact_where_diffusers_rounds():
    times = torch.tensor([0, 1, 412, 937, 999])
    found = TimeFeatures(64)(times)
    angles = times.double()[:, None] * torch.exp(
        -torch.log(torch.tensor(10000.0, dtype=torch.float64)) * torch.arange(32) / 32
    )
    exact = torch.cat([angles.cos(), angles.sin()], 1)
    theirs = get_timestep_embedding(times, 64, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert (found.double() - exact).abs().max() < 1e-7
    torch.testing.assert_close(found, theirs, atol=2e-4, rtol=0)


def test_the_cache_forgets_what_was_not_used_for_longest():
    cache = Cache(limit=3 * 40)
    for key in "abc":
        cache[key] = torch.zeros(10)
    cache["a"]
    cache["d"] = torch.zeros(10)
    assert [key in cache for key in "abcd"] == [True, False, True, True]
    assert cache.bytes == 120


def test_the_cache_computes_only_what_is_missing_and_once():
    cache, asked = Cache(), []

    def compute(missing):
        asked.append(missing)
        return [torch.tensor(float(i)) for i in missing]

    assert [float(v) for v in cache.resolve(["x", "y", "x"], compute)] == [0, 1, 0]
    assert [float(v) for v in cache.resolve(["y", "z"], compute)] == [1, 1]
    assert asked == [[0, 1], [1]]
