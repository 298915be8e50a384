"""Models with random weights: the classes and types of the loaded ones, and finite numbers."""

from __future__ import annotations

import pytest
import torch

from trainers.bench import models
from trainers.bench.models import make_policy, make_reward
from trainers.bench.sizes import SIZES, transformer_config
from trainers.config import make_config
from trainers.lora.inject import lora_parameters
from trainers.policies.base import Guidance, VideoSize
from trainers.policies.stored import holds_float8
from trainers.prompts import PromptItem
from trainers.tinyworld.models import PHANTOM, TEXT, VACE, VAE
from trainers.tinyworld.prompts import tiny_prompt_set

CPU = torch.device("cpu")
SIZE = VideoSize(32, 48, 5)
CONFIG = {"policy": {"dtype": "bfloat16"}, "reward": {"dtype": "bfloat16"}, "lora": {"rank": 2, "alpha": 2}}


@pytest.fixture
def small(monkeypatch):
    """The published sizes made small."""
    configs = {"vace": VACE, "phantom": PHANTOM}
    monkeypatch.setattr(models, "transformer_config", lambda size, kind: configs[kind])
    monkeypatch.setattr(models, "TEXT_ENCODER", {**models.TEXT_ENCODER, **TEXT, "vocab_size": 100})
    monkeypatch.setattr(models, "vae_config", lambda size: VAE)
    vision = {**models.REWARD["vision_config"], "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32}
    vision |= {"out_hidden_size": 64, "fullatt_block_indexes": [1]}
    text = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    text |= {"vocab_size": 400, "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}, "vision_config": vision}
    monkeypatch.setattr(models, "REWARD", models.REWARD | text)


@pytest.mark.parametrize("kind", ["vace", "phantom"])
def test_a_policy_has_the_types_of_a_loaded_one_and_a_finite_velocity(small, kind):
    policy = make_policy("1.3b", kind, make_config("fast", CONFIG), CPU)
    assert policy.kind == kind
    assert policy.transformer.blocks[0].ffn.net[2].weight.dtype == torch.bfloat16
    assert policy.transformer.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert {p.dtype for p in lora_parameters(policy.transformer).values()} == {torch.float32}
    item = PromptItem("a", "two people wave", tiny_prompt_set("train", 1)[0].references)
    conditions = policy.batch([policy.encode(item, SIZE)])
    latents = torch.randn(1, *policy.latent_shape(SIZE, conditions.references))
    velocity = policy.velocity(latents, torch.tensor([500]), conditions, Guidance(1.0))
    assert velocity.isfinite().all() and velocity.std() > 0
    assert policy.decode(latents, conditions.references).shape == (1, 5, 32, 48, 3)


def test_a_policy_is_prepared_as_a_run_prepares_it(small):
    config = make_config("fast", {**CONFIG, "optim": {"gradient_checkpointing": 0.5}})
    transformer = make_policy("1.3b", "vace", config, CPU).transformer
    assert lora_parameters(transformer)
    assert transformer._gradient_checkpointing_func.share == 0.5


@pytest.mark.parametrize("kind", ["vace", "phantom"])
def test_weights_as_they_are_stored_are_fp8_and_nearly_those_that_are_converted(small, kind):
    converted, stored = (
        make_policy(
            "1.3b", kind, make_config("fast", {**CONFIG, "policy": CONFIG["policy"] | {"weights": weights}}), CPU
        )
        for weights in ("converted", "stored")
    )
    assert holds_float8(stored.transformer) and not holds_float8(converted.transformer)
    layers = [policy.transformer.blocks[0].ffn.net[2] for policy in (converted, stored)]
    x = torch.randn(3, layers[0].in_features, dtype=torch.bfloat16)
    expected, found = (layer(x).float() for layer in layers)
    assert 0 < (found - expected).norm() < 0.05 * expected.norm()


def test_a_reward_scores(small):
    reward = make_reward("1.3b", make_config("fast", CONFIG), CPU)
    assert next(reward.model.language_model.parameters()).dtype == torch.bfloat16
    assert reward.model.rm_head.weight.dtype == torch.float32
    (item,) = tiny_prompt_set("train", 1)
    video = torch.zeros(5, 32, 48, 3, dtype=torch.uint8)
    assert reward.score([video], [item.references]).isfinite().all()


@pytest.mark.parametrize("size, parameters", [("1.3b", 1.42e9), ("14b", 14.3e9)])
def test_the_published_sizes_have_their_parameters(size, parameters):
    """Of the text-to-video model: 1.3B and 14B by their names."""
    from accelerate import init_empty_weights
    from diffusers import WanTransformer3DModel

    with init_empty_weights():
        model = WanTransformer3DModel(**transformer_config(size, "phantom"))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.01)
    assert size in SIZES
