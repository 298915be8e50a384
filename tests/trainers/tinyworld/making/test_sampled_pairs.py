"""Pairs of videos that a policy sampled."""

from __future__ import annotations

import torch

from trainers.config import TINYWORLD_WEIGHTS
from trainers.preference.loss import A_BETTER, B_BETTER, TIE
from trainers.tinyworld.making.sampled_pairs import CLOSELY_ALIKE, alter, sampled_pairs
from trainers.tinyworld.oracle import measure
from trainers.tinyworld.prompts import scenes_of, tiny_prompt_set


def test_labels_are_the_oracles_of_altered_copies_too():
    pairs = sampled_pairs(TINYWORLD_WEIGHTS / "vace", 2, 5, "cpu", each=2, alike=CLOSELY_ALIKE, altered=True)
    assert len(pairs) == 2 * (1 + 2)
    scenes = scenes_of([item for item in tiny_prompt_set("train", 2, 5) for _ in range(3)])
    a, b = (measure(torch.stack([getattr(p, name) for p in pairs]), scenes).identity for name in ("video_a", "video_b"))
    expected = torch.where((a - b).abs() < CLOSELY_ALIKE, TIE, torch.where(a > b, A_BETTER, B_BETTER))
    assert [p.label for p in pairs] == expected.tolist()
    assert len(set(expected.tolist())) > 1


def test_altered_copies_differ_a_little_and_depend_on_the_seed_alone():
    videos = torch.randint(0, 256, (40, 2, 8, 8, 3), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    first, again, other = (alter(videos, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    changed = (first.float() - videos.float()).abs().mean((1, 2, 3, 4))
    assert (changed > 0).float().mean() > 0 and changed.max() < 64
