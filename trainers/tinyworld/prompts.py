"""TinyWorld's prompt sets: scenes and rendered portraits instead of rows of a CSV."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..prompts import PromptItem
from .models import PORTRAIT
from .people import appearance
from .render import render_portraits, to_frames
from .scenes import SceneBatch, prompt, sample_scenes

# Each split has half of the generator's 2**32 seeds: they share no scene.
HALF = 1 << 31
SPLITS = {"train": 0, "held_out": HALF}


def tiny_prompt_set(split: str, count: int, seed: int = 0) -> list[PromptItem]:
    """`count` items of the split `train` or `held_out`: portraits uint8 [84, 84, 3], and the scene in `extra`.

    Item k does not depend on `count`.
    """
    first = 1_000_000 + 100_003 * seed
    seeds = [SPLITS[split] + (first + index) % HALF for index in range(count)]
    scenes = [sample_scenes(1, torch.Generator().manual_seed(s)) for s in seeds]
    people = [scene.people[0, : int(scene.count[0])] for scene in scenes]
    rendered = to_frames(render_portraits(appearance(torch.cat(people)), PORTRAIT).unsqueeze(2))[:, 0]
    portraits = rendered.split([len(p) for p in people])
    return [
        PromptItem(
            f"tiny-{split.replace('_', '-')}-{index:04d}",
            prompt(scene),
            tuple(faces.numpy()),
            extra={"scene": scene.to_dict()},
        )
        for index, (scene, faces) in enumerate(zip(scenes, portraits, strict=True))
    ]


def scenes_of(items: Sequence[PromptItem]) -> SceneBatch:
    """The scenes of the items, as one batch."""
    return SceneBatch.cat([SceneBatch.from_dict(item.extra["scene"]) for item in items])
