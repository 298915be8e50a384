"""Making TinyWorld's reward in one call."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from trainers.config import TINYWORLD_WEIGHTS
from trainers.rewards.identity import IdentityReward
from trainers.tinyworld.making.preference_pairs import held_out_pairs
from trainers.tinyworld.making.train_reward import make_reward


def test_base_and_reward_are_written_and_read_back(tmp_path: Path) -> None:
    result = make_reward(tmp_path, device="cpu", minutes=2, steps=3, batch=2, held_out=2, seed=7, sampled=0)
    assert (
        json.loads((tmp_path / "identity_reward" / "made.json").read_text(encoding="utf-8"))["held_out"]["pairs"] == 2
    )
    assert result["base"]["steps"] == 2 and result["reward"]["steps"] == 1
    size = sum(f.stat().st_size for f in tmp_path.rglob("*.safetensors"))
    assert size < 8_000_000
    pair = held_out_pairs(1)[0]
    (tmp_path / "elsewhere").mkdir()
    for folder in ("base_model", "identity_reward"):
        (tmp_path / folder).rename(tmp_path / "elsewhere" / folder)
    score = IdentityReward.load(tmp_path / "elsewhere" / "identity_reward").score(
        [pair.video_a], [pair.references], pair.fps
    )
    assert torch.isfinite(score).all()


def test_a_reward_goes_on_from_another(tmp_path: Path) -> None:
    """At a learning rate of nearly 0 it scores as that one does, and from the base alone it does not."""
    folder, base = TINYWORLD_WEIGHTS / "reward" / "identity_reward", TINYWORLD_WEIGHTS / "reward" / "base_model"
    (pair,) = held_out_pairs(1)

    def score(reward: Path) -> torch.Tensor:
        return IdentityReward.load(reward, base).score([pair.video_a, pair.video_b], [pair.references] * 2, pair.fps)

    made = {"device": "cpu", "steps": 1, "batch": 2, "held_out": 2, "sampled": 0, "base": base}
    make_reward(tmp_path / "on", **made, start=folder, learning_rate=1e-9)
    make_reward(tmp_path / "anew", **made, learning_rate=1e-9)
    assert torch.allclose(score(tmp_path / "on" / "identity_reward"), score(folder), atol=0.01)
    assert not torch.allclose(score(tmp_path / "anew" / "identity_reward"), score(folder), atol=0.1)
