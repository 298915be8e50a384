"""The settings of a run that trains a reward from votes, in place of a policy against one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from .plain_yaml import dump_yaml
from .sections import Fraction, Integer, Interval, Number, Place, Section, Seed


class RewardRunConfig(Section):
    """Everything that decides such a run. The first line of its `config.yaml` is its kind."""

    kind: Literal["reward"] = Field("reward", description="what the run trains")
    preset: Literal["paper", "tiny"] = Field("paper", description="the recipe, of trainers/preference/recipe.py")
    seed: Seed = Field(42, description="of the new weights, the order of the pairs and the dropout")
    iterations: Interval = Field(description="training steps, each on a batch of pairs")
    pairs: Place = Field(description="folder of the pairs and votes")
    pairs_bytes: Integer = Field(
        ge=0, le=2**53, description="how much of its pairs.jsonl is read: a later vote does not change a run"
    )
    base_model: Place = Field(description="Qwen2.5-VL folder")
    start: Place | None = Field(None, description="folder of a reward to begin with; null: the base model")
    held_out: Fraction = Field(0.15, description="share of the pairs, by people, that the reward is measured on")
    learning_rate: Number = Field(gt=1e-9, le=1, description="highest learning rate of the recipe's schedule")
    evaluations: Integer = Field(10, ge=1, le=1000, description="how often the held-out pairs are measured")
    patience: Integer = Field(
        5, ge=0, le=1000, description="measurements without a lower loss after which it ends; the best is kept"
    )
    low_memory: bool = Field(
        False, description="24 GB: vision tower by LoRA, activations recomputed, one pair at a time"
    )

    def with_absolute_paths(self) -> RewardRunConfig:
        """The same run started from any folder."""
        places = {name: getattr(self, name) for name in ("pairs", "base_model", "start")}
        absolute = {n: p and str(Path(os.path.expanduser(p)).absolute()) for n, p in places.items()}
        return self.model_copy(update=absolute)

    @property
    def rewards_have_a_device(self) -> bool:
        """As of a run that trains a policy; here the reward is what is trained."""
        return False

    def to_yaml(self) -> str:
        return dump_yaml(self.model_dump(mode="json"))
