"""The small stand-in for Qwen2.5-VL."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from trainers.rewards.identity import open_base
from trainers.rewards.sequence import HEAD, TAIL
from trainers.tinyworld.making.reward_base import SPECIAL_TOKENS, build_reward_base

SMALL = {
    "vision_width": 32,
    "vision_depth": 2,
    "vision_heads": 2,
    "vision_intermediate": 48,
    "width": 32,
    "depth": 1,
    "heads": 2,
    "key_value_heads": 1,
    "intermediate": 48,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_reward_base(tmp_path_factory.mktemp("base"), **SMALL)


def test_it_is_of_the_real_class(base: Path) -> None:
    model, _ = open_base(base, torch.float32)
    assert type(model.visual).__name__ == "Qwen2_5_VisionTransformerPretrainedModel"
    assert type(model.language_model).__name__ in ("Qwen2_5_VLTextModel", "Qwen2_5_VLModel")


def test_every_weight_is_in_the_file(base: Path) -> None:
    """A weight that is missing would be random at every load."""
    torch.manual_seed(1)
    one, _ = open_base(base, torch.float32)
    torch.manual_seed(2)
    other, _ = open_base(base, torch.float32)
    ours = {
        k: v for k, v in one.state_dict().items() if k not in ("rm_head.weight", "language_model.embed_tokens.weight")
    }
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in ours.items())
    rows = json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    assert torch.equal(one.language_model.embed_tokens.weight[:rows], other.language_model.embed_tokens.weight[:rows])


def test_the_instruction_has_few_tokens_and_decodes_to_itself(base: Path) -> None:
    _, sequencer = open_base(base, torch.float32)
    ids = sequencer.tokenizer.encode(HEAD + TAIL, add_special_tokens=False).ids
    assert len(ids) < 40
    assert sequencer.tokenizer.decode(ids, skip_special_tokens=False) == HEAD + TAIL


def test_special_tokens_stand_at_the_end_in_their_order(base: Path) -> None:
    _, sequencer = open_base(base, torch.float32)
    ids = [sequencer.tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert sequencer.reward_token == ids[-1] + 1


def test_the_same_seed_gives_the_same_files(base: Path, tmp_path: Path) -> None:
    build_reward_base(tmp_path / "again", **SMALL)
    build_reward_base(tmp_path / "other", **SMALL, seed=1)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (base / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert (base / "model.safetensors").read_bytes() != (tmp_path / "other" / "model.safetensors").read_bytes()
