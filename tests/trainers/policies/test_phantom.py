from pathlib import Path

import pytest
import torch

from trainers.errors import UserError
from trainers.lora.inject import add_lora, lora_parameters
from trainers.parity.phantom import verify_case
from trainers.policies.base import Guidance, VideoSize
from trainers.policies.phantom import PhantomPolicy, predict, with_references
from trainers.policies.wan import fit_on_white_sharply

GOLDEN = Path(__file__).parents[2] / "golden" / "phantom"
TIMES = torch.tensor([900, 400])


@pytest.fixture
def kind():
    return "phantom"


@pytest.fixture
def batch(policy, size, make_item):
    return policy.batch([policy.encode(make_item(seed=s, negative="table"), size) for s in (0, 1)])


@pytest.fixture
def latents(policy, size):
    shape = policy.latent_shape(size, 2)
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


def branches(policy, latents, batch):
    """The velocity of each branch: references and prompt, references alone, neither."""
    frames = latents.shape[2]
    absent = torch.zeros_like(batch.control)
    inputs = [(batch.control, batch.text), (batch.control, batch.negative_text), (absent, batch.negative_text)]
    with torch.no_grad():
        return [predict(policy.transformer, with_references(latents, r), TIMES, t)[:, :, :frames] for r, t in inputs]


def test_the_golden_case_is_reproduced():
    results = verify_case(GOLDEN)
    names = {r.name.removesuffix(" (UniPC)") for r in results}
    assert names == {
        "input_with_refs",
        "input_without_refs",
        "sigmas",
        "timesteps",
        "other_scales.v_guided",
        "final",
    } | {f"step{i}.{part}" for i in range(4) for part in ("v_img_text", "v_img", "v_neg", "v_guided", "next_latents")}
    assert [r for r in results if not r.ok] == []


def test_velocities_are_the_originals_to_rounding():
    assert max(r.error for r in verify_case(GOLDEN) if ".v_" in r.name) < 1e-4


@pytest.mark.parametrize(
    ("scales", "computed"),
    [
        (Guidance(7.5, 5.0), 3),
        (Guidance(1.0, 5.0), 3),
        (Guidance(7.5, 1.0), 2),
        (Guidance(4.0, 4.0), 2),
        (Guidance(4.0), 2),
        (Guidance(1.0, 1.0), 1),
        (Guidance(), 1),
    ],
)
def test_only_branches_with_a_weight_are_computed_in_one_forward(policy, latents, batch, count_calls, scales, computed):
    both, image, neither = branches(policy, latents, batch)
    s_image = scales.text if scales.image is None else scales.image
    expected = neither + s_image * (image - neither) + scales.text * (both - image)
    calls = count_calls(policy.transformer)
    with torch.no_grad():
        found = policy.velocity(latents, TIMES, batch, scales)
    assert calls == [computed * 2]
    assert policy.branches(scales) == computed
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)


def test_the_branches_differ(policy, latents, batch):
    both, image, neither = branches(policy, latents, batch)
    assert (both - image).abs().max() > 1e-4
    assert (image - neither).abs().max() > 1e-4


def test_references_are_encoded_alone_and_follow_the_clip_in_their_order(policy, make_item):
    item, size = make_item(references=3), VideoSize(32, 48, 9)
    control = policy.encode(item, size).control
    own = [policy.vae.encode(fit_on_white_sharply(p, 32, 48)[None, :, None])[0] for p in item.references]
    torch.testing.assert_close(control, torch.cat(own, 1), atol=1e-6, rtol=0)
    clip = torch.randn(1, 16, 3, 4, 6)
    assert torch.equal(with_references(clip, control[None]), torch.cat([clip, control[None]], 2))


def test_only_the_clip_is_sampled_and_trained(policy, size, latents, batch):
    assert policy.latent_shape(size, 0) == policy.latent_shape(size, 4) == latents.shape[1:] == (16, 2, 4, 6)
    assert policy.velocity(latents, TIMES, batch, Guidance(7.5, 5.0)).shape == latents.shape
    assert policy.decode(latents, 2).shape == (2, 5, 32, 48, 3)


def test_references_and_their_order_change_the_clip(policy, latents, batch):
    with torch.no_grad():
        first = policy.velocity(latents, TIMES, batch, Guidance())
        turned = type(batch)(batch.text, batch.negative_text, batch.control.flip(2), batch.references)
        second = policy.velocity(latents, TIMES, turned, Guidance())
    assert (first - second).abs().max() > 1e-4


def test_without_references_it_is_text_to_video(policy, size, make_item, latents):
    batch = policy.batch([policy.encode(make_item(references=0, seed=s, negative="table"), size) for s in (0, 1)])
    assert batch.control.shape == (2, 16, 0, 4, 6)
    both, image, neither = branches(policy, latents, batch)
    assert torch.equal(image, neither)
    with torch.no_grad():
        found = policy.velocity(latents, TIMES, batch, Guidance(3.0, 5.0))
    torch.testing.assert_close(found, neither + 3.0 * (both - neither), atol=5e-5, rtol=0)


def test_a_lora_on_the_attention_of_every_block_gets_a_gradient(policy, latents, batch):
    add_lora(policy.transformer, 2, 2, seed=0)
    policy.velocity(latents, TIMES, batch, Guidance(7.5, 5.0)).square().mean().backward()
    gradients = {name: p.grad for name, p in lora_parameters(policy.transformer).items() if ".lora_B." in name}
    assert len(gradients) == 3 * 8
    assert all(g is not None and g.abs().max() > 0 for g in gradients.values())


def test_a_vae_of_another_model_is_refused(parts):
    from diffusers import AutoencoderKLWan

    other = AutoencoderKLWan(
        base_dim=8, z_dim=8, dim_mult=[1, 2, 4, 4], num_res_blocks=1, latents_mean=[0.0] * 8, latents_std=[1.0] * 8
    )
    with pytest.raises(UserError, match="latents of 16 channels, this VAE makes 8"):
        PhantomPolicy(parts[0], other, *parts[2:])
