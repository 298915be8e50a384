"""Preference pairs of videos that a policy sampled: what a reward scores when that policy is trained.

TinyWorld's oracle labels them, as human annotators do for the real reward: which of two videos of the same item keeps
its people better, or a tie.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

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
CLOSELY_ALIKE = 0.01
"""The same for one who looks closely: videos of an item by an improved policy differ by 0.026 (standard deviation)."""
RENDERED = 1 / 3
"""Share of rendered pairs in what a reward is trained on."""


def sampled_pairs(
    policy: Path | str,
    items: int,
    seed: int,
    device: torch.device | str,
    each: int = 3,
    lora: Path | None = None,
    alike: float = ALIKE,
    altered: bool = False,
) -> list[Pair]:
    """All pairs of `each` videos per item, sampled as the preset `tiny` evaluates and labelled by the oracle.

    `lora`: a LoRA file of the policy that samples. `alike`: see ALIKE. `altered`: also a pair of every video and a copy
    of it, or of the next one, with other exposure, colours or sharpness: an improved policy's videos differ in these.
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
    scenes = scenes_of([item for item in prompts for _ in range(each)])
    seen = [(videos, measure(videos, scenes).identity.tolist())]
    if altered:
        copies = alter(videos, torch.Generator(videos.device).manual_seed(seed))
        seen.append((copies, measure(copies, scenes).identity.tolist()))
    pairs = []
    for number, item in enumerate(prompts):
        portraits = [torch.from_numpy(picture).to(device) for picture in item.references]

        def pair(a: tuple[int, int], b: tuple[int, int], portraits: list[Tensor] = portraits) -> Pair:
            """Of two videos, each by whether it is altered and its place."""
            difference = seen[a[0]][1][a[1]] - seen[b[0]][1][b[1]]
            label = TIE if abs(difference) < alike else A_BETTER if difference > 0 else B_BETTER
            return Pair(portraits, seen[a[0]][0][a[1]], seen[b[0]][0][b[1]], label, FPS, "sampled")

        own = range(number * each, number * each + each)
        pairs += [pair((0, a), (0, b)) for a, b in combinations(own, 2)]
        for place, a in enumerate(own if altered else ()):
            copy = (1, a if place % 2 else own[(place + 1) % each])
            pairs.append(pair((0, a), copy) if place % 3 else pair(copy, (0, a)))
    return pairs


def alter(videos: Tensor, generator: torch.Generator) -> Tensor:
    """Copies of videos uint8 [B, F, H, W, 3] with a little more or less contrast, light, colour and sharpness.

    Each of these changes half of the videos.
    """
    return torch.cat([_alter(part, generator) for part in videos.split(512)])


def _alter(videos: Tensor, generator: torch.Generator) -> Tensor:
    def amount(least: float, most: float, channels: int = 1) -> Tensor:
        def uniform(channels: int) -> Tensor:
            return torch.rand(len(videos), 1, 1, 1, channels, generator=generator, device=videos.device)

        return (least + (most - least) * uniform(channels)) * (uniform(1) < 0.5)

    pixels = videos.float() / 127.5 - 1
    pixels = pixels * (1 + amount(-0.15, 0.12)) + amount(-0.08, 0.08) + amount(-0.05, 0.05, channels=3)
    grey = pixels.mean(-1, keepdim=True)
    pixels = grey + (pixels - grey) * (1 + amount(-0.15, 0.2))
    frames = F.pad(pixels.flatten(0, 1).movedim(-1, 1), (1, 1, 1, 1), mode="replicate")
    soft = F.avg_pool2d(frames, 3, 1).movedim(1, -1).unflatten(0, videos.shape[:2])
    pixels = pixels + (soft - pixels) * amount(-0.6, 0.7)
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


class Mixed:
    """An endless stream of batches: a third distortions, the rest sampled pairs."""

    def __init__(self, distortions: PairStream, sampled: list[Pair], seed: int):
        self.distortions, self.sampled = distortions, sampled
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[list[Pair]]:
        for batch in self.distortions:
            rendered = round(len(batch) * RENDERED)
            chosen = torch.randint(len(self.sampled), (len(batch) - rendered,), generator=self.generator).tolist()
            yield batch[:rendered] + [self.sampled[i] for i in chosen]
