"""A wide measurement: many held-out items under several noises, of the base policy and of LoRA files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..config import TrainConfig
from ..files import read_regular, write_atomic
from ..lora.formats import read_lora
from ..lora.inject import load_lora_into, remove_lora
from ..policies.load import policy_of
from ..prompts import PromptItem
from ..rewards.load import load_reward
from .evaluate import Judge, Measurement, held_out_videos, measure

FIELDS = ("rewards", "identity", "alignment", "quality")


class WideMeasure:
    """Measures the policy of `config` on the same items and noises with any LoRA; results are kept as JSON.

    The sizes, steps and guidance are those of the config's evaluation. The policy and the reward are loaded at first
    use.
    """

    def __init__(
        self,
        config: TrainConfig,
        items: Sequence[PromptItem],
        seeds: Sequence[int],
        judge: Judge,
        device: torch.device | str,
    ) -> None:
        self.config, self.items, self.seeds, self.judge, self.device = config, items, seeds, judge, device
        self._models = None

    def measure(self, lora: Path | None, kept: Path) -> dict[str, np.ndarray]:
        """`rewards`, `identity`, `alignment`, `quality` [E, I] with the LoRA file, or of the base policy for None.

        `kept`: the JSON file that holds the result; it is read instead of measuring again if it is of the same seeds
        and of as many items. A file belongs to one LoRA.
        """
        known = self._read(kept)
        if known is None:
            known = self._measure(lora)
            values = {name: value.tolist() for name, value in known.items()}
            write_atomic(kept, json.dumps({"seeds": list(self.seeds), "items": len(self.items), **values}))
        return known

    def _read(self, kept: Path) -> dict[str, np.ndarray] | None:
        """None for a file that is not there, damaged, or of another measurement."""
        try:
            values = json.loads(read_regular(kept))
            if (values["seeds"], values["items"]) != (list(self.seeds), len(self.items)):
                return None
            found = {name: np.asarray(values[name], dtype=np.float64) for name in FIELDS}
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return None
        shape = len(self.seeds), len(self.items)
        return found if all(v.shape == shape and np.isfinite(v).all() for v in found.values()) else None

    def _measure(self, lora: Path | None) -> dict[str, np.ndarray]:
        if self._models is None:
            self._models = policy_of(self.config.policy, self.device), load_reward(self.config.reward, self.device)
        policy, reward = self._models
        if lora is not None:
            load_lora_into(policy.transformer, read_lora(lora))
        try:
            found = [self._under(policy, reward, seed) for seed in self.seeds]
        finally:
            if lora is not None:
                remove_lora(policy.transformer)
        return {name: np.asarray([getattr(one, name) for one in found]) for name in FIELDS}

    def _under(self, policy, reward, seed: int) -> Measurement:
        evaluation = self.config.evaluation.model_copy(update={"seed": seed})
        config = self.config.model_copy(update={"evaluation": evaluation})
        return measure(reward, held_out_videos(policy, self.items, config), self.items, config, self.judge)
