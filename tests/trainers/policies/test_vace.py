from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainers.errors import UserError
from trainers.policies.base import Guidance, VideoSize, buckets
from trainers.policies.kit import verify_kit
from trainers.policies.vace import VacePolicy, control_latents
from trainers.policies.wan import fit_on_white
from trainers.prompts import PromptItem

GOLDEN = Path(__file__).parents[2] / "golden" / "vace"


def noise_for(policy, size, conditions, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = policy.latent_shape(size, conditions[0].references)
    return torch.stack([torch.randn(shape, generator=generator) for _ in conditions])


def count_calls(module):
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


def pipeline_of(parts, pipelines):
    from diffusers import UniPCMultistepScheduler

    names = ("transformer", "vae", "text_encoder", "tokenizer")
    return pipelines[1](**dict(zip(names, parts, strict=True)), scheduler=UniPCMultistepScheduler())


def test_golden_kit_is_reproduced():
    results = verify_kit(GOLDEN)
    assert sum("velocity" in r.name for r in results) == 8
    assert [r for r in results if not r.ok] == []


def test_velocities_are_the_originals_to_rounding():
    assert max(r.error for r in verify_kit(GOLDEN) if "velocity" in r.name) < 2e-5


def test_defect_10_references_keep_their_order_where_diffusers_reverses_it(policy, parts, pipelines, make_item):
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


def test_guidance_combines_both_branches_of_one_forward(policy, size, make_item):
    conditions = [policy.encode(make_item(seed=s, negative="table"), size) for s in (0, 1)]
    batch, latents, times = policy.batch(conditions), noise_for(policy, size, conditions), torch.tensor([900, 400])
    calls = count_calls(policy.transformer)
    with torch.no_grad():
        guided = policy.velocity(latents, times, batch, Guidance(3.5))
        assert len(calls) == 1
        with_text = policy.velocity(latents, times, batch, Guidance())
        without = policy.velocity(
            latents, times, type(batch)(batch.negative_text, batch.text, batch.control, batch.references), Guidance()
        )
    assert guided.dtype == torch.float32
    assert (with_text - without).abs().max() > 1e-4
    torch.testing.assert_close(guided, without + 3.5 * (with_text - without), atol=2e-5, rtol=0)


def test_rollout_and_training_see_the_same_velocity_to_the_bit(policy, size, make_item):
    conditions = [policy.encode(make_item(seed=s), size) for s in (0, 1)]
    batch, latents, times = policy.batch(conditions), noise_for(policy, size, conditions), torch.tensor([900, 900])
    with torch.no_grad():
        rolled = policy.velocity(latents, times, batch, Guidance(4.5))
    policy.transformer.requires_grad_(True)
    trained = policy.velocity(latents, times, batch, Guidance(4.5))
    assert trained.requires_grad
    assert torch.equal(rolled, trained)


def test_gradient_checkpointing_changes_no_number(policy, size, make_item):
    conditions = [policy.encode(make_item(), size)]
    batch, latents = policy.batch(conditions), noise_for(policy, size, conditions)
    weight = policy.transformer.vace_blocks[0].attn1.to_q.weight.requires_grad_(True)

    def run():
        weight.grad = None
        velocity = policy.velocity(latents, torch.tensor([700]), batch, Guidance(2.0))
        velocity.square().mean().backward()
        return velocity.detach(), weight.grad.clone()

    plain = run()
    policy.transformer.enable_gradient_checkpointing()
    saved = run()
    assert plain[1].abs().max() > 0
    assert torch.equal(plain[0], saved[0])
    torch.testing.assert_close(plain[1], saved[1], atol=1e-8, rtol=1e-5)


def test_control_scale_scales_every_hint(policy, size, make_item):
    conditions = [policy.encode(make_item(), size)]
    batch, latents, times = policy.batch(conditions), noise_for(policy, size, conditions), torch.tensor([700])
    with torch.no_grad():
        full, half, none = (policy.velocity(latents, times, batch, Guidance(), control_scale=s) for s in (1.0, 0.5, 0.0))
        blind = type(batch)(batch.text, batch.negative_text, torch.zeros_like(batch.control), batch.references)
        assert torch.equal(none, policy.velocity(latents, times, blind, Guidance(), control_scale=0.0))
    assert not torch.equal(full, half)


def test_a_sample_is_the_same_alone_and_among_mixed_reference_counts(policy, size, make_item):
    conditions = [policy.encode(make_item(references=r, seed=r), size) for r in (2, 3, 2, 0)]
    groups = buckets(conditions)
    assert groups == {2: [0, 2], 3: [1], 0: [3]}
    with torch.no_grad():
        for members in groups.values():
            own = [conditions[i] for i in members]
            latents, times = noise_for(policy, size, own), torch.full((len(own),), 500)
            together = policy.velocity(latents, times, policy.batch(own), Guidance(2.0))
            for place, condition in enumerate(own):
                alone = policy.velocity(latents[place : place + 1], times[:1], policy.batch([condition]), Guidance(2.0))
                torch.testing.assert_close(together[place : place + 1], alone, atol=1e-5, rtol=1e-5)


def test_texts_and_references_are_encoded_once(policy, size, make_item):
    texts, pictures = count_calls(policy.text.encoder), count_calls(policy.vae.model.encoder)
    first = policy.encode(make_item(), size)
    before = len(texts), len(pictures)
    again = policy.encode(make_item(prompt="a   man and a woman walk"), size)
    assert (len(texts), len(pictures)) == before
    assert torch.equal(first.control, again.control)
    other = policy.encode(make_item(), VideoSize(32, 32, 5))
    assert len(pictures) > before[1]
    assert other.control.shape == (96, 4, 4, 4)


def test_conditions_are_the_same_to_the_bit_whatever_was_encoded_before(policy, parts, size, make_item):
    fresh = VacePolicy(*parts, text_len=12)
    fresh.encode(PromptItem("first", "", make_item().references[1:]), size)
    expected, found = policy.encode(make_item(), size), fresh.encode(make_item(), size)
    assert torch.equal(expected.control, found.control)
    assert torch.equal(expected.text, found.text)


def test_the_same_picture_as_file_and_as_pixels_is_one(policy, size, make_item, tmp_path):
    item = make_item(references=1)
    Image.fromarray(item.references[0]).save(tmp_path / "ann.png")
    pictures = count_calls(policy.vae.model.encoder)
    first = policy.encode(item, size)
    before = len(pictures)
    second = policy.encode(PromptItem("other", item.prompt, (tmp_path / "ann.png",)), size)
    assert len(pictures) == before
    assert torch.equal(first.control, second.control)


def test_conditions_wait_on_the_cpu_in_float32(policy, size, make_item):
    found = policy.encode(make_item(), size)
    assert found.references == 2
    assert found.text.shape == found.negative_text.shape == (12, 16)
    assert found.control.shape == (96, 4, 4, 6)
    assert {t.dtype for t in (found.text, found.negative_text, found.control)} == {torch.float32}
    assert {t.device.type for t in (found.text, found.negative_text, found.control)} == {"cpu"}


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


@pytest.mark.parametrize(
    ("size", "advice"),
    [
        (VideoSize(40, 48, 5), "height that is a multiple of 16"),
        (VideoSize(32, 44, 5), "width that is a multiple of 16"),
        (VideoSize(32, 48, 8), "multiple of 4, plus 1"),
        (VideoSize(32, 48, 0), "multiple of 4, plus 1"),
    ],
)
def test_an_impossible_size_is_refused(policy, make_item, size, advice):
    with pytest.raises(UserError, match=advice):
        policy.encode(make_item(), size)


@pytest.mark.parametrize(("name", "shape"), [("control_video", (5, 16, 48, 3)), ("control_mask", (4, 32, 48))])
def test_a_control_clip_of_another_size_is_refused(policy, size, make_item, name, shape):
    with pytest.raises(UserError, match=name):
        policy.encode(make_item(), size, **{name: np.zeros(shape, np.uint8)})


def test_a_missing_reference_is_named(policy, size, tmp_path):
    with pytest.raises(UserError, match=r"nobody\.png"):
        policy.encode(PromptItem("a", "a man", (tmp_path / "nobody.png",)), size)


def test_a_vae_that_does_not_belong_is_refused(parts):
    from diffusers import AutoencoderKLWan

    other = AutoencoderKLWan(
        base_dim=8, z_dim=8, dim_mult=[1, 2, 4, 4], num_res_blocks=1, latents_mean=[0.0] * 8, latents_std=[1.0] * 8
    )
    with pytest.raises(UserError, match="96 control channels, this VAE makes 80"):
        VacePolicy(parts[0], other, *parts[2:])
