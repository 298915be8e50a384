"""Preference pairs of videos that a policy sampled: what a reward scores when that policy is trained.

TinyWorld's oracle labels them, as human annotators do for the real reward: which of two videos of the same item keeps
its people better, or a tie.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import torch

from ...config import make_config
from ...diffusion.sampling import sample_videos
from ...grpo.evaluate import evaluation_guidance
from ...lora.formats import read_lora
from ...lora.inject import load_lora_into
from ...policies.base import VideoSize
from ...policies.load import load_policy
from ...preference.loss import A_BETTER, B_BETTER, TIE
from ...preference.pairs import Pair
from ..models import FPS, FRAMES, HEIGHT, WIDTH
from ..oracle import measure
from ..prompts import scenes_of, tiny_prompt_set
from .preference_pairs import PairStream

ALIKE = 0.05
"""Videos whose identity differs by less are a tie."""


def sampled_pairs(
    policy: Path | str, items: int, seed: int, device: torch.device | str, each: int = 3, lora: Path | None = None
) -> list[Pair]:
    """All pairs of `each` videos per item, sampled as the preset `tiny` evaluates and labelled by the oracle.

    `lora`: a LoRA file of the policy that samples.
    """
    config = make_config("tiny")
    model = load_policy(str(policy), torch.float32, torch.device(device))
    if lora:
        load_lora_into(model.transformer, read_lora(lora))
    prompts = tiny_prompt_set("train", items, seed)
    size = VideoSize(HEIGHT, WIDTH, FRAMES)
    conditions = [encoded for encoded in (model.encode(item, size) for item in prompts) for _ in range(each)]
    seeds = [seed * 1_000_003 + i for i in range(len(conditions))]
    videos = sample_videos(
        model, conditions, size, config.evaluation.steps, config.rollout.shift, evaluation_guidance(config), seeds, 256
    )
    videos = videos.to(device)
    repeated = [item for item in prompts for _ in range(each)]
    identity = measure(videos, scenes_of(repeated)).identity.tolist()
    pairs = []
    for first in range(0, len(videos), each):
        for a, b in combinations(range(first, first + each), 2):
            difference = identity[a] - identity[b]
            label = TIE if abs(difference) < ALIKE else A_BETTER if difference > 0 else B_BETTER
            portraits = [torch.from_numpy(picture).to(device) for picture in repeated[a].references]
            pairs.append(Pair(portraits, videos[a], videos[b], label, FPS, "sampled"))
    return pairs


class Mixed:
    """An endless stream of batches: half distortions, half sampled pairs."""

    def __init__(self, distortions: PairStream, sampled: list[Pair], seed: int):
        self.distortions, self.sampled = distortions, sampled
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[list[Pair]]:
        for batch in self.distortions:
            half = len(batch) // 2
            chosen = torch.randint(len(self.sampled), (len(batch) - half,), generator=self.generator).tolist()
            yield batch[:half] + [self.sampled[i] for i in chosen]
