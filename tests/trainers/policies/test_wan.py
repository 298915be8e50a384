import numpy as np
import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.errors import UserError
from trainers.policies.wan import Cache, TimeFeatures, WanText, clean_prompt, fit_on_white, fit_on_white_sharply


@pytest.fixture
def kind():
    """Of the transformer, which no test here uses."""
    return "vace"


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


def test_the_sharp_fit_averages_details_that_are_too_small():
    """A checkerboard of single pixels becomes grey; without antialias single pixels would be picked."""
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
        ("She says “hello” and he’s smiling", 'She says "hello" and he\'s smiling'),
        ("cafÃ© table", "café table"),
        ("a \ufb01ne day", "a fine day"),
        ("\u4e00\u4e2a\u4eba\u5728\u8d70\u8def", "\u4e00\u4e2a\u4eba\u5728\u8d70\u8def"),
        ("a \U0001f600 smile", "a \U0001f600 smile"),
        ("\ud83d\ude00 smile", "\U0001f600 smile"),
    ],
)
def test_prompts_are_cleaned_as_by_wan(text, clean):
    """Expected values are those of `basic_clean` and `whitespace_clean` in Wan2.1's tokenizers.py."""
    assert clean_prompt(text) == clean


@pytest.mark.parametrize("text", ["a smile \ud83d", "\ude00 at the table", "a \ud83d man &#xD83D; walk"])
def test_half_an_emoji_can_be_encoded(parts, text):
    cleaned = clean_prompt(text)
    assert "\ufffd" in cleaned
    assert cleaned.encode("utf-8").decode("utf-8") == cleaned
    embedding = WanText(parts[2], parts[3], 12).encode([text])[0]
    assert embedding.shape == (12, 16) and embedding.isfinite().all()


def test_a_text_encoder_whose_embeddings_are_not_finite_is_named(parts):
    parts[2].shared.weight.data[:] = float("nan")
    with pytest.raises(UserError, match="embedding of `a man walk` is not finite .*float32"):
        WanText(parts[2], parts[3], 12).encode(["a man walk"])


def test_text_embeddings_are_those_of_diffusers_pipeline(parts, pipelines):
    vae, text, tokenizer = parts[1:]
    prompts = ["a man   and a woman", "", "two people &amp; a table"]
    pipeline = pipelines[0](tokenizer=tokenizer, text_encoder=text, vae=vae, scheduler=None, transformer=None)
    theirs = pipeline._get_t5_prompt_embeds(prompts, max_sequence_length=12, device="cpu")
    ours = torch.stack(WanText(text, tokenizer, 12).encode(prompts))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert torch.equal(ours[1, 1:], torch.zeros(11, 16))


def test_an_embedding_does_not_depend_on_the_other_texts(parts):
    text, tokenizer = parts[2:]
    alone = WanText(text, tokenizer, 12).encode(["a man walk"])[0]
    together = WanText(text, tokenizer, 12).encode(["two people sit at the table", "a man walk"])[1]
    assert torch.equal(alone, together)


def test_a_text_that_is_too_long_is_cut(parts):
    assert WanText(parts[2], parts[3], 12).encode(["man " * 50])[0].shape == (12, 16)


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


def test_the_cache_drops_the_least_recently_used():
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
