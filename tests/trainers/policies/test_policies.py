"""Properties of every policy."""

import pytest
import torch
from PIL import Image

from trainers.errors import UserError
from trainers.policies.base import VideoSize, buckets
from trainers.prompts import PromptItem


def test_rollout_and_training_have_the_same_velocity_bit_for_bit(policy, size, make_item, noise_for, guidance):
    conditions = [policy.encode(make_item(seed=s), size) for s in (0, 1)]
    batch, latents, times = policy.batch(conditions), noise_for(conditions), torch.tensor([900, 900])
    with torch.no_grad():
        rolled = policy.velocity(latents, times, batch, guidance)
    policy.transformer.requires_grad_(True)
    trained = policy.velocity(latents, times, batch, guidance)
    assert trained.requires_grad
    assert torch.equal(rolled, trained)


def test_gradient_checkpointing_changes_no_result(kind, policy, size, make_item, noise_for, guidance):
    conditions = [policy.encode(make_item(), size)]
    batch, latents = policy.batch(conditions), noise_for(conditions)
    block = policy.transformer.vace_blocks[0] if kind == "vace" else policy.transformer.blocks[0]
    weight = block.attn1.to_q.weight.requires_grad_(True)

    def run():
        weight.grad = None
        velocity = policy.velocity(latents, torch.tensor([700]), batch, guidance)
        velocity.square().mean().backward()
        return velocity.detach(), weight.grad.clone()

    plain = run()
    policy.transformer.enable_gradient_checkpointing()
    saved = run()
    assert plain[1].abs().max() > 0
    assert torch.equal(plain[0], saved[0])
    torch.testing.assert_close(plain[1], saved[1], atol=1e-8, rtol=1e-5)


def test_a_sample_is_the_same_alone_and_in_a_batch_of_mixed_reference_counts(
    policy, size, make_item, noise_for, guidance
):
    conditions = [policy.encode(make_item(references=r, seed=r), size) for r in (2, 3, 2, 0)]
    groups = buckets(conditions)
    assert groups == {2: [0, 2], 3: [1], 0: [3]}
    with torch.no_grad():
        for members in groups.values():
            own = [conditions[i] for i in members]
            latents, times = noise_for(own), torch.full((len(own),), 500)
            together = policy.velocity(latents, times, policy.batch(own), guidance)
            for place, condition in enumerate(own):
                alone = policy.velocity(latents[place : place + 1], times[:1], policy.batch([condition]), guidance)
                torch.testing.assert_close(together[place : place + 1], alone, atol=1e-5, rtol=1e-5)


def count_encodings(vae):
    """A list that gets the number of clips of every call of `vae.encode`."""
    calls, encode = [], vae.encode
    vae.encode = lambda videos: calls.append(len(videos)) or encode(videos)
    return calls


def test_texts_and_references_are_encoded_once(policy, size, make_item, count_calls):
    texts, pictures = count_calls(policy.text.encoder), count_encodings(policy.vae)
    first = policy.encode(make_item(), size)
    before = len(texts), len(pictures)
    again = policy.encode(make_item(prompt="a   man and a woman walk"), size)
    assert (len(texts), len(pictures)) == before
    assert torch.equal(first.control, again.control)
    other = policy.encode(make_item(), VideoSize(32, 32, 5))
    assert len(pictures) > before[1]
    assert other.control.shape == (*first.control.shape[:3], 4)


def test_conditions_do_not_depend_on_what_was_encoded_before(policy, make_policy, size, make_item):
    fresh = make_policy()
    fresh.encode(PromptItem("first", "", make_item().references[1:]), size)
    expected, found = policy.encode(make_item(), size), fresh.encode(make_item(), size)
    assert torch.equal(expected.control, found.control)
    assert torch.equal(expected.text, found.text)


def test_a_picture_from_a_file_and_as_pixels_is_encoded_once(policy, size, make_item, tmp_path):
    item = make_item(references=1)
    Image.fromarray(item.references[0]).save(tmp_path / "ann.png")
    pictures = count_encodings(policy.vae)
    first = policy.encode(item, size)
    before = len(pictures)
    second = policy.encode(PromptItem("other", item.prompt, (tmp_path / "ann.png",)), size)
    assert len(pictures) == before
    assert torch.equal(first.control, second.control)


def test_conditions_are_on_the_cpu_in_float32(kind, policy, size, make_item):
    found = policy.encode(make_item(), size)
    assert found.references == 2
    assert found.text.shape == found.negative_text.shape == (12, 16)
    assert found.control.shape == ((96, 4, 4, 6) if kind == "vace" else (16, 2, 4, 6))
    assert {t.dtype for t in (found.text, found.negative_text, found.control)} == {torch.float32}
    assert {t.device.type for t in (found.text, found.negative_text, found.control)} == {"cpu"}


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


def test_a_missing_reference_is_named(policy, size, tmp_path):
    with pytest.raises(UserError, match=r"nobody\.png"):
        policy.encode(PromptItem("a", "a man", (tmp_path / "nobody.png",)), size)


@pytest.mark.parametrize("content", [b"", b"no picture at all"])
def test_an_unreadable_reference_is_named(policy, size, tmp_path, content):
    (tmp_path / "ann.png").write_bytes(content)
    with pytest.raises(UserError, match=r"ann\.png"):
        policy.encode(PromptItem("a", "a man", (tmp_path / "ann.png",)), size)


def test_a_policy_without_a_lora_gets_no_gradient(policy, size, make_item, noise_for, guidance):
    conditions = [policy.encode(make_item(), size)]
    velocity = policy.velocity(noise_for(conditions), torch.tensor([500]), policy.batch(conditions), guidance)
    assert not velocity.requires_grad
    assert velocity.dtype == torch.float32
    assert velocity.shape == (1, *policy.latent_shape(size, 2))


@pytest.mark.parametrize("wrong", [VideoSize(32, 16 * 65, 5), VideoSize(16 * 65, 32, 5), VideoSize(32, 48, 4 * 64 + 1)])
def test_a_video_beyond_the_positions_of_the_model_is_refused(policy, make_item, wrong):
    with pytest.raises(UserError, match=r"has more positions than this model knows \(64 of rows"):
        policy.encode(make_item(), wrong)
