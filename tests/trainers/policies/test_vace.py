from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainers.errors import UserError
from trainers.parity.vace import verify_case
from trainers.policies.base import Guidance, VideoSize
from trainers.policies.vace import VacePolicy, control_latents
from trainers.policies.wan import fit_on_white

GOLDEN = Path(__file__).parents[2] / "golden" / "vace"


@pytest.fixture
def kind():
    return "vace"


def pipeline_of(parts, pipelines):
    from diffusers import UniPCMultistepScheduler

    names = ("transformer", "vae", "text_encoder", "tokenizer")
    return pipelines[1](**dict(zip(names, parts, strict=True)), scheduler=UniPCMultistepScheduler())


def test_the_golden_case_is_reproduced():
    results = verify_case(GOLDEN)
    assert sum("velocity" in r.name for r in results) == 8
    assert [r for r in results if not r.ok] == []


def test_velocities_are_the_originals_to_rounding():
    assert max(r.error for r in verify_case(GOLDEN) if "velocity" in r.name) < 2e-5


def test_references_keep_their_order_where_diffusers_reverses_it(policy, parts, pipelines, make_item):
    item, size = make_item(references=3), VideoSize(32, 48, 9)
    control = policy.encode(item, size).control
    own = [policy.vae.encode(fit_on_white(p, size.height, size.width)[None, :, None])[0] for p in item.references]
    for place, latent in enumerate(own):
        torch.testing.assert_close(control[:16, place : place + 1], latent, atol=1e-5, rtol=1e-5)
        assert torch.equal(control[16:, place], torch.zeros(80, 4, 6))
    pictures = [Image.fromarray(p) for p in item.references]
    pipeline = pipeline_of(parts, pipelines)
    video, mask, references = pipeline.preprocess_conditions(
        None, None, pictures, 1, size.height, size.width, size.frames, torch.float32, torch.device("cpu")
    )
    theirs = torch.cat(
        [
            pipeline.prepare_video_latents(video, mask, references, device=torch.device("cpu")),
            pipeline.prepare_masks(mask, references),
        ],
        1,
    )[0]
    torch.testing.assert_close(control[:, [2, 1, 0, 3, 4, 5]], theirs, atol=2e-5, rtol=1e-5)


def test_a_source_clip_and_soft_mask_are_laid_out_as_in_diffusers(policy, parts, pipelines, make_item):
    size = VideoSize(32, 48, 9)
    rng = np.random.default_rng(3)
    video = rng.integers(0, 256, (9, 32, 48, 3), dtype=np.uint8)
    mask = rng.random((9, 32, 48), dtype=np.float32)
    control = policy.encode(make_item(references=1), size, video, mask).control
    pipeline = pipeline_of(parts, pipelines)
    frames = torch.from_numpy(video).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    soft = torch.from_numpy(mask)[None, None].expand(1, 3, -1, -1, -1)
    latents = pipeline.prepare_video_latents(frames, soft, [[]], device=torch.device("cpu"))
    theirs = torch.cat([latents, pipeline.prepare_masks(soft, [[]])], 1)[0]
    torch.testing.assert_close(control[:, 1:], theirs, atol=2e-5, rtol=1e-5)


def test_a_clip_alone_is_regenerated_everywhere_and_a_mask_alone_edits_grey(policy, size, make_item):
    item = make_item(references=0)
    video = np.full((5, 32, 48, 3), 200, np.uint8)
    assert torch.equal(policy.encode(item, size, control_video=video).control[32:], torch.ones(64, 2, 4, 6))
    blank = policy.encode(item, size).control
    torch.testing.assert_close(policy.encode(item, size, control_mask=np.zeros((5, 32, 48))).control[:32], blank[:32])


@pytest.mark.parametrize("frames", [1, 5, 9, 33, 81])
def test_mask_times_are_nearest_exact(frames):
    times = 1 + (frames - 1) // 4
    mask = torch.rand(frames, 16, 16)
    latent = torch.zeros(16, times, 2, 2)
    found = control_latents(latent, latent, [], mask)[32:]
    cells = mask.view(frames, 2, 8, 2, 8).permute(2, 4, 0, 1, 3).flatten(0, 1)
    expected = torch.nn.functional.interpolate(cells[None], size=(times, 2, 2), mode="nearest-exact")[0]
    assert torch.equal(found, expected)


def test_guidance_combines_both_branches_of_one_forward(policy, size, make_item, noise_for, count_calls):
    conditions = [policy.encode(make_item(seed=s, negative="table"), size) for s in (0, 1)]
    batch, latents, times = policy.batch(conditions), noise_for(conditions), torch.tensor([900, 400])
    calls = count_calls(policy.transformer)
    with torch.no_grad():
        guided = policy.velocity(latents, times, batch, Guidance(3.5))
        assert calls == [4]
        with_text = policy.velocity(latents, times, batch, Guidance())
        without = policy.velocity(
            latents, times, type(batch)(batch.negative_text, batch.text, batch.control, batch.references), Guidance()
        )
    assert guided.dtype == torch.float32
    assert (with_text - without).abs().max() > 1e-4
    torch.testing.assert_close(guided, without + 3.5 * (with_text - without), atol=2e-5, rtol=0)


def test_without_guidance_one_branch_is_computed(policy, size, make_item, noise_for, count_calls):
    conditions = [policy.encode(make_item(), size)]
    calls = count_calls(policy.transformer)
    with torch.no_grad():
        policy.velocity(noise_for(conditions), torch.tensor([900]), policy.batch(conditions), Guidance())
    assert calls == [1]
    assert (policy.branches(Guidance()), policy.branches(Guidance(4.5))) == (1, 2)


def test_an_image_scale_is_refused(policy):
    with pytest.raises(
        UserError, match=r"VACE has no image guidance, and an image scale of 5 is given.*remove the image scale"
    ):
        policy.branches(Guidance(7.5, 5.0))


def test_control_scale_scales_every_hint(policy, size, make_item, noise_for):
    conditions = [policy.encode(make_item(), size)]
    batch, latents, times = policy.batch(conditions), noise_for(conditions), torch.tensor([700])
    with torch.no_grad():
        full, half, none = (
            policy.velocity(latents, times, batch, Guidance(), control_scale=s) for s in (1.0, 0.5, 0.0)
        )
        blind = type(batch)(batch.text, batch.negative_text, torch.zeros_like(batch.control), batch.references)
        assert torch.equal(none, policy.velocity(latents, times, blind, Guidance(), control_scale=0.0))
    assert not torch.equal(full, half)


def test_decoding_cuts_the_references_off(policy, size):
    latents = torch.randn(2, *policy.latent_shape(size, 2), generator=torch.Generator().manual_seed(0))
    frames = policy.decode(latents, 2)
    assert frames.shape == (2, 5, 32, 48, 3)
    assert torch.equal(frames, policy.decode(latents[:, :, 2:], 0))


@pytest.mark.parametrize("references", [0, 2])
@pytest.mark.parametrize("frames", [1, 5, 33])
def test_latent_shape_is_that_of_the_control(policy, make_item, references, frames):
    size = VideoSize(16, 32, frames)
    control = policy.encode(make_item(references), size).control
    assert policy.latent_shape(size, references) == (16, *control.shape[1:])


@pytest.mark.parametrize(("name", "shape"), [("control_video", (5, 16, 48, 3)), ("control_mask", (4, 32, 48))])
def test_a_control_clip_of_another_size_is_refused(policy, size, make_item, name, shape):
    with pytest.raises(UserError, match=name):
        policy.encode(make_item(), size, **{name: np.zeros(shape, np.uint8)})


@pytest.mark.parametrize("name", ["control_video", "control_mask"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_control_clip_that_is_not_finite_is_named(policy, size, make_item, name, value):
    clip = np.zeros((5, 32, 48, 3) if name == "control_video" else (5, 32, 48), np.float32)
    clip[2, 3, 4] = value
    with pytest.raises(UserError, match=f"{name} has values that are not finite"):
        policy.encode(make_item(), size, **{name: clip})


def test_a_vae_of_another_model_is_refused(parts):
    from diffusers import AutoencoderKLWan

    other = AutoencoderKLWan(
        base_dim=8, z_dim=8, dim_mult=[1, 2, 4, 4], num_res_blocks=1, latents_mean=[0.0] * 8, latents_std=[1.0] * 8
    )
    with pytest.raises(UserError, match="96 control channels, this VAE makes 80"):
        VacePolicy(parts[0], other, *parts[2:])
