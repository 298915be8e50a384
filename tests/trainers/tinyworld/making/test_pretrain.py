"""Pre-training of TinyWorld's policies: it learns, and Phantom is trained in the layout in which it samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainers.policies.base import ConditionBatch, Guidance, VideoSize
from trainers.policies.phantom import PhantomPolicy
from trainers.prompts import PromptItem
from trainers.tinyworld.making.latent_scenes import LatentScenes
from trainers.tinyworld.making.train_policy import flow_loss, phantom_error, train_policy
from trainers.tinyworld.models import FRAMES, HEIGHT, PORTRAIT, TEXT_LENGTH, WIDTH, build_tokenizer, build_vae
from trainers.tinyworld.people import appearance
from trainers.tinyworld.render import render_portraits, to_frames
from trainers.tinyworld.scenes import prompt, sample_scenes

SCENES, SEED = 4, 3
SMALL = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 2,
    "cross_attn_norm": True,
    "rope_max_seq_len": 64,
}


def sampled_scenes(count: int):
    """The scenes that `LatentScenes` of this seed samples."""
    return sample_scenes(SCENES, torch.Generator().manual_seed(SEED), counts=(count,))


@pytest.fixture(scope="module")
def shared():
    """VAE and tokenizer, which no test changes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = build_vae().eval().requires_grad_(False)
    scenes = sampled_scenes(2)
    return vae, build_tokenizer([prompt(scenes[i : i + 1]) for i in range(SCENES)])


@pytest.fixture(scope="module")
def data(shared) -> LatentScenes:
    return LatentScenes(*shared, 2, SCENES, torch.device("cpu"), SEED, smooth=True, batch=SCENES)


@pytest.fixture
def models(shared):
    """(transformer of a kind, text encoder) with random weights, the same in every test."""
    from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    def make(kind: str):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            transformer = (
                WanTransformer3DModel(**SMALL)
                if kind == "phantom"
                else WanVACETransformer3DModel(**SMALL, vace_layers=[0], vace_in_channels=96)
            )
            text = UMT5EncoderModel(
                UMT5Config(
                    vocab_size=len(shared[1]),
                    d_model=16,
                    d_kv=8,
                    d_ff=16,
                    num_layers=1,
                    num_heads=2,
                    dropout_rate=0.0,
                    pad_token_id=0,
                    eos_token_id=1,
                )
            )
        return transformer, text.requires_grad_(kind == "vace")

    return make


@pytest.fixture
def policy(models, shared) -> PhantomPolicy:
    transformer, text = models("phantom")
    return PhantomPolicy(transformer, shared[0], text, shared[1], TEXT_LENGTH)


@pytest.fixture
def batch(data):
    """Clip, references, text and noise level of every scene, as `flow_loss` hands them to `phantom_error`."""
    generator = torch.Generator().manual_seed(5)
    text = torch.randn(SCENES, TEXT_LENGTH, 16, generator=generator)
    return data.clean.float(), data.references.float(), text, torch.tensor([0.9, 0.6, 0.4, 0.2]).view(-1, 1, 1, 1, 1)


def seeded_error(transformer, batch, seed: int = 0) -> Tensor:
    """`phantom_error` with noise and dropped references of this seed."""
    torch.manual_seed(seed)
    return phantom_error(transformer, None, *batch)


def seed_that_drops_the_first() -> int:
    """With it `phantom_error` drops the references of the first scene and of no other."""
    for seed in range(1000):
        torch.manual_seed(seed)
        if (torch.rand(SCENES) < 0.1).tolist() == [True] + [False] * (SCENES - 1):
            return seed
    raise AssertionError("no such seed")


def seen_by(transformer) -> list[tuple[dict, Tensor]]:
    """A list that grows by the input (as keywords) and the answer of every call."""
    names, calls = ("hidden_states", "timestep", "encoder_hidden_states"), []
    transformer.register_forward_hook(
        lambda _, args, kwargs, answer: calls.append((dict(zip(names, args, strict=False)) | kwargs, answer[0])),
        with_kwargs=True,
    )
    return calls


@pytest.mark.parametrize("kind", ["vace", "phantom"])
def test_the_loss_of_one_fixed_batch_falls(kind, models, data):
    transformer, text = models(kind)
    losses = []

    def measure(_: int) -> None:
        torch.manual_seed(0)
        with torch.no_grad():
            losses.append(flow_loss(kind, transformer, text, data, False, SCENES).item())
        torch.manual_seed(0)  # the next step samples this very batch

    measure(0)
    train_policy(kind, transformer, text, [data], False, 12, float("inf"), 3e-3, SCENES, "test", tick=measure)
    assert len(losses) == 13 and losses[-1] < 0.8 * losses[0]


def test_the_trained_weights_are_the_average_over_the_steps(models, data):
    transformer, text = models("phantom")
    weight = transformer.patch_embedding.weight
    before, after = weight.detach().clone(), []
    train_policy(
        "phantom",
        transformer,
        text,
        [data],
        False,
        3,
        float("inf"),
        1e-2,
        SCENES,
        "test",
        tick=lambda _: after.append(weight.detach().clone()),
    )
    expected = before
    for step in after:
        expected = expected + 0.002 * (step - expected)
    torch.testing.assert_close(weight, expected, atol=1e-7, rtol=0)
    assert (weight - before).abs().max() > 1e-5


def test_phantom_s_output_for_references_is_not_in_the_loss(models, batch):
    transformer, _ = models("phantom")
    frames, plain = batch[0].shape[2], seeded_error(transformer, batch)
    for place, counts in ((slice(frames, None), False), (slice(frames), True)):

        def spoil(_, __, answer, place=place):
            spoilt = answer[0].clone()
            spoilt[:, :, place] += 7
            return (spoilt,)

        hook = transformer.register_forward_hook(spoil)
        assert torch.equal(seeded_error(transformer, batch), plain) != counts
        hook.remove()


def test_phantom_s_references_reach_the_clip(models, batch):
    """Otherwise the test above would hold for a loss that ignores them."""
    transformer, _ = models("phantom")
    clip, references, *rest = batch
    assert not torch.equal(
        seeded_error(transformer, (clip, references.flip(2), *rest)), seeded_error(transformer, batch)
    )


def test_phantom_is_trained_on_the_layout_in_which_it_samples(policy, batch):
    """With references as in the branches that see them; where they were dropped, as in the branch that does not."""
    clip, references, text, sigma = batch
    calls, frames = seen_by(policy.transformer), clip.shape[2]
    with torch.no_grad():
        seeded_error(policy.transformer, batch, seed_that_drops_the_first())
        given, answer = calls[0]
        noisy = given["hidden_states"][:, :, :frames]
        conditions = ConditionBatch(text, text, references, 2)
        with_references, without = (
            policy.velocity(noisy, sigma.flatten() * 1000, conditions, g) for g in (Guidance(), Guidance(0.0))
        )
    for scene, sampled in enumerate([without, *[with_references] * (SCENES - 1)]):
        call = 1 if sampled is with_references else 2
        for name, value in given.items():
            if isinstance(value, Tensor):
                assert torch.equal(value[scene], calls[call][0][name][scene]), name
        assert torch.equal(answer[scene, :, :frames], sampled[scene])
    assert not torch.equal(with_references[0], without[0])


def test_phantom_is_trained_on_references_that_it_encodes_alike_in_their_order(policy, data):
    """Nearly: half precision and two filters lie between them."""
    people = sampled_scenes(2).people[:, :2]
    for scene in range(SCENES):
        faces = to_frames(render_portraits(appearance(people[scene]), PORTRAIT).unsqueeze(2))[:, 0]
        control = policy.encode(PromptItem("x", "x", tuple(faces.numpy())), VideoSize(HEIGHT, WIDTH, FRAMES)).control
        trained = data.references[scene].float()
        assert control.shape == trained.shape == (16, 2, 6, 10)
        apart = (trained.flip(1) - trained).square().mean()
        assert (control - trained).square().mean() < apart / 20
