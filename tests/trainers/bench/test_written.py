"""Random models as files are loaded by the loaders of a run, at sizes small enough for a test."""

from __future__ import annotations

import pytest
import torch

from trainers.bench.sizes import REWARD
from trainers.bench.written import Sizes, write_models
from trainers.config import make_config
from trainers.memory.sizes import read_sizes
from trainers.policies.load import policy_of
from trainers.prompts import load_prompt_set
from trainers.rewards.load import load_reward
from trainers.rewards.scoring import score_videos
from trainers.tinyworld.models import TEXT, VACE, VAE

SMALL_REWARD = REWARD | {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "vocab_size": 1000,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "vision_config": REWARD["vision_config"]
    | {
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 48,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
    },
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    text = {**TEXT, "vocab_size": 32, "feed_forward_proj": "gated-gelu", "pad_token_id": 0, "eos_token_id": 1}
    sizes = Sizes("vace", VACE, VAE, text, SMALL_REWARD)
    lines: list[str] = []
    folder = tmp_path_factory.mktemp("written")
    settings = write_models(folder, sizes, torch.device("cpu"), lines.append)
    assert lines == ["writing transformer", "writing vae", "writing text_encoder", "writing reward"]
    assert write_models(folder, sizes, torch.device("cpu"), lines.append) == settings
    assert len(lines) == 4, "what is there is kept"
    return make_config("fast", settings | {"video": {"height": 16, "width": 16, "frames": 5}})


def test_the_policy_and_the_reward_load_and_their_numbers_are_finite(config):
    policy, reward = policy_of(config.policy), load_reward(config.reward)
    item = load_prompt_set(config.prompts)[0]
    size = type("Size", (), {"height": 16, "width": 16, "frames": 5})
    assert policy.text.encode([item.prompt])[0].isfinite().all()
    assert policy.encode_references(item.references, size)[0].isfinite().all()
    assert len(reward.collator.sequencer.tokenizer.get_vocab()) == SMALL_REWARD["vocab_size"]
    video = torch.zeros(5, 16, 16, 3, dtype=torch.uint8)
    assert score_videos(reward, [video], [item], config.reward).isfinite().all()


def test_sizes_from_the_headers_are_those_of_the_loaded_models(config):
    sizes = read_sizes(config)
    policy, reward = policy_of(config.policy), load_reward(config.reward)
    for expected, model in (
        (sizes.transformer, policy.transformer),
        (sizes.text_encoder, policy.text.encoder),
        (sizes.vae, policy.vae.model),
        (sizes.reward, reward.model),
    ):
        found = sum(p.nbytes for p in model.parameters())
        assert found == pytest.approx(expected, rel=0.05)
    blocks = [*policy.transformer.vace_blocks, *policy.transformer.blocks]
    assert sum(p.nbytes for block in blocks for p in block.parameters()) == pytest.approx(
        sizes.transformer_blocks, rel=0.05
    )
    assert max(sum(p.nbytes for p in block.parameters()) for block in blocks) == pytest.approx(
        sizes.largest_block, rel=0.05
    )
    text = policy.text.encoder.encoder.block
    assert sum(p.nbytes for block in text for p in block.parameters()) == sizes.text_blocks
