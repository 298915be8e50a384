"""Preference pairs of TinyWorld, rendered as they are needed: two clips of the same people in the same scene.

Which clip keeps the people better is known from the renderer's parameters (`damage`), not from pixels or a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import permutations

import torch
from torch import Tensor

from ...preference.loss import A_BETTER, B_BETTER, TIE
from ...preference.pairs import Pair
from ...rewards.geometry import frame_indices
from ..models import FPS, FRAMES, PORTRAIT
from ..people import PARTS, appearance
from ..render import Motion, render, render_portraits, to_frames
from ..scenes import MAX_PEOPLE, STAND, SceneBatch, sample_scenes
from .distort import DISTORTIONS, distort, looks, random_kinds

WAYS = (*DISTORTIONS, "strangers")
"""How a clip may fail: the kinds of `distort`, or some of its people replaced by strangers from the start."""
SHARES = {"swap": 0.15, "blend": 0.15, "drift": 0.15, "lost attribute": 0.28, "missing": 0.08, "copy-paste": 0.05}
"""Shares of the ways among failing clips; the rest are strangers."""
TIE_BAND = 0.1
"""Clips whose damage differs by less are a tie; damage 1: all people replaced by strangers, or missing."""
STIFF = 0.25
"""Damage of a pasted portrait, times the share of people who should have moved."""
SEEN = frame_indices(FRAMES)
"""The frames that the reward reads; only these are rendered, and the frame rate is lowered to match."""


def damage(scenes: SceneBatch, altered: Tensor, moves: Motion, pasted: Tensor) -> Tensor:
    """How badly clips keep their people, float32 [B] in [0, 1], in the frames that the reward reads.

    altered [B, 3, F, P] and `moves` of those frames; pasted bool [B] marks clips that fail by copy-paste. Every
    attribute counts equally, in units of its typical difference between strangers. People may stand in other places
    than the scene says, since the reward reads no prompt, but each keeps one place: a change of appearance is damage.
    """
    clean = looks(scenes, 1)
    difference = torch.stack(
        [
            ((altered[:, :, None, :, part] - clean[:, None, :, :, part]).abs().mean(-1) / _typical(name)).clamp(max=1)
            for name, part in PARTS.items()
        ]
    )
    likeness = 1 - difference.mean(0)
    likeness = likeness * moves.visible[:, :, None]
    present = scenes.present().float()
    best = torch.zeros_like(scenes.jitter[:, 0, 0])
    for order in permutations(range(MAX_PEOPLE)):
        matched = torch.stack([likeness[:, k, r].mean(-1) * present[:, k] * present[:, r] for k, r in enumerate(order)])
        best = torch.maximum(best, matched.sum(0) / scenes.count)
    still = ((scenes.action != STAND).float() * present).sum(1) / scenes.count
    return 1 - best + STIFF * still * pasted


@lru_cache
def _typical(name: str) -> float:
    """Mean absolute difference of an attribute's parameters between strangers who differ in it."""
    people = sample_scenes(2000, torch.Generator().manual_seed(0)).people[:, 0]
    apart = (appearance(people[:1000]) - appearance(people[1000:]))[:, PARTS[name]].abs().mean(-1)
    return apart[apart > 0].mean().item()


class PairStream:
    """An endless stream of batches of pairs, rendered on `device`; it depends on the seed alone.

    Half of the clips A and a fifth of the clips B are clean. Of pairs of failing clips, half fail in the same way, so
    that severities are compared. The clips also differ in jitter, background, depth order and noise,
    independently of the label, so that none of these predicts it.

    `easy` in [0, 1], which may change between batches: the share of pairs of a clean clip and one whose people are all
    strangers. A network that cannot compare people yet learns from these first.
    """

    def __init__(self, batch_size: int, seed: int, device: torch.device | str = "cpu", easy: float = 0.0):
        self.batch_size, self.easy = batch_size, easy
        self.generator = torch.Generator(device).manual_seed(seed)

    def __iter__(self) -> Iterator[list[Pair]]:
        while True:
            yield self.sample()

    @torch.no_grad()
    def sample(self) -> list[Pair]:
        """The next `batch_size` pairs."""
        n, generator = self.batch_size, self.generator
        scenes = sample_scenes(n, generator)
        kind_a = torch.where(self._uniform(n) < 0.5, -1, self._kinds(n))
        kind_b = torch.where(self._uniform(n) < 0.2, -1, self._kinds(n))
        alike = (self._uniform(n) < 0.5) & (kind_a >= 0) & (kind_b >= 0)
        kind_b = torch.where(alike, kind_a, kind_b)
        severity_a, severity_b = (0.2 + 0.8 * self._uniform(n) for _ in "ab")
        easy = self._uniform(n) < self.easy
        kind_a, kind_b = torch.where(easy, -1, kind_a), torch.where(easy, WAYS.index("strangers"), kind_b)
        clips_a, damage_a = self._film(scenes, kind_a, severity_a)
        clips_b, damage_b = self._film(self._again(scenes), kind_b, torch.where(easy, 1.0, severity_b))
        flip = self._uniform(n) < 0.5
        difference = torch.where(flip, damage_a - damage_b, damage_b - damage_a)
        labels = torch.where(difference > 0, A_BETTER, B_BETTER)
        labels = torch.where(difference.abs() < TIE_BAND, TIE, labels).tolist()
        portraits = self._portraits(scenes)
        rate = FPS * len(SEEN) / FRAMES
        kinds = [_name(a, b) for a, b in zip(kind_a.tolist(), kind_b.tolist(), strict=True)]
        return [
            Pair(portraits[i][:people], b if turned else a, a if turned else b, label, rate, kind)
            for i, (people, a, b, turned, label, kind) in enumerate(
                zip(scenes.count.tolist(), clips_a, clips_b, flip.tolist(), labels, kinds, strict=True)
            )
        ]

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.generator.device)

    def _kinds(self, count: int) -> Tensor:
        kinds = random_kinds(count, SHARES, self.generator)
        return torch.where(kinds < 0, WAYS.index("strangers"), kinds)

    def _again(self, scenes: SceneBatch) -> SceneBatch:
        """The same people and actions with another jitter, depth order and background."""
        other = sample_scenes(len(scenes), self.generator)
        return replace(scenes, jitter=other.jitter, depth=other.depth, background=other.background)

    def _film(self, scenes: SceneBatch, kind: Tensor, severity: Tensor) -> tuple[Tensor, Tensor]:
        """Clips uint8 [B, 4, H, W, 3] of scenes that fail in the given ways, and their damage [B]."""
        known = torch.where(kind < len(DISTORTIONS), kind, -1)
        altered, moves = distort(scenes, known, severity, self.generator)
        altered = altered[:, :, SEEN]
        moves = Motion(**{name: track[:, :, SEEN] for name, track in vars(moves).items()})
        strangers = appearance(sample_scenes(len(scenes), self.generator).people)
        replaced = self._uniform(len(scenes), MAX_PEOPLE) < severity[:, None]
        replaced[:, 0] |= ~replaced.any(1)
        replaced &= (kind == WAYS.index("strangers"))[:, None]
        altered = torch.where(replaced[..., None, None], strangers.unsqueeze(2), altered)
        clips = self._camera(render(scenes, altered, len(SEEN), moves=moves))
        return to_frames(clips), damage(scenes, altered, moves, kind == WAYS.index("copy-paste"))

    def _camera(self, clips: Tensor) -> Tensor:
        """Noise of a random strength per clip; clips [B, 3, F, H, W] in [-1, 1].

        Nothing else: a reward that learns here to overlook exposure and softness overlooks them in a policy's videos,
        where they are much of what is left to improve.
        """
        noise = torch.randn(clips.shape, generator=self.generator, device=clips.device)
        return clips + noise * 0.03 * self._uniform(len(clips), 1, 1, 1, 1)

    def _portraits(self, scenes: SceneBatch) -> Tensor:
        """Portraits uint8 [B, 3, S, S, 3]."""
        portraits = render_portraits(appearance(scenes.people.flatten(0, 1)), PORTRAIT)
        return to_frames(portraits.unsqueeze(2))[:, 0].unflatten(0, (len(scenes), MAX_PEOPLE))


def held_out_pairs(count: int, seed: int = 1_000_003, device: torch.device | str = "cpu") -> list[Pair]:
    """Pairs for evaluation; training streams of other seeds have none of them."""
    return PairStream(count, seed, device).sample()


def _name(kind_a: int, kind_b: int) -> str:
    a, b = ("clean" if kind < 0 else WAYS[kind] for kind in sorted((kind_a, kind_b)))
    return f"{a} / {b}"
