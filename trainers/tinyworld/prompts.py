"""TinyWorld's own prompt sets, drawn instead of read."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..prompts import PromptItem
from .models import PORTRAIT
from .people import appearance
from .render import render_portraits, to_frames
from .scenes import SceneBatch, prompt, sample_scenes

# First seeds of the splits: no scene of one is in the other.
SPLITS = {"train": 1_000_000, "held_out": 2_000_000}


def tiny_prompt_set(split: str, count: int, seed: int = 0) -> list[PromptItem]:
    """`count` items of the split `train` or `held_out`: portraits uint8 [96, 96, 3] as references, the scene in `extra`.

    Item k is the same however many are asked for.
    """
    items = []
    for index in range(count):
        scene = sample_scenes(1, torch.Generator().manual_seed(SPLITS[split] + 100_003 * seed + index))
        people = scene.people[0, : int(scene.count[0])]
        portraits = to_frames(render_portraits(appearance(people), PORTRAIT).unsqueeze(2))[:, 0].numpy()
        items.append(PromptItem(f"tiny-{split.replace('_', '-')}-{index:04d}", prompt(scene), tuple(portraits), extra={"scene": scene.to_dict()}))
    return items


def scenes_of(items: Sequence[PromptItem]) -> SceneBatch:
    """The scenes that the items ask for, as one batch."""
    return SceneBatch.cat([SceneBatch.from_dict(item.extra["scene"]) for item in items])
