"""Votes of TinyWorld's oracle, with mistakes: what a person's votes are for a real reward."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ...config import TINYWORLD_WEIGHTS
from ...preference.folder import PairFolder
from ...preference.loss import A_BETTER, B_BETTER, TIE
from ...preference.pairs import Pair
from .sampled_pairs import sampled_pairs

VERDICTS = {A_BETTER: "A", B_BETTER: "B", TIE: "tie"}
EACH = 3
"""Videos of an item that are compared with each other, for votes."""
EACH_HELD_OUT = 4
CHUNK = 32
"""Items that are sampled at a time, at most, until there are pairs enough."""


def votes_with_mistakes(pairs: Sequence[Pair], mistakes: float, shuffled: bool, seed: int) -> list[str]:
    """A verdict on each pair: the label, but for a share of `mistakes` another one; or the same in a random order."""
    chance = random.Random(seed)
    verdicts = []
    for pair in pairs:
        right = VERDICTS[pair.label]
        others = [verdict for verdict in VERDICTS.values() if verdict != right]
        verdicts.append(chance.choice(others) if chance.random() < mistakes else right)
    if shuffled:
        chance.shuffle(verdicts)
    return verdicts


def write_votes(path: Path, pairs: Sequence[Pair], verdicts: Sequence[str]) -> PairFolder:
    """A folder with the pairs and one vote on each, as the editor would have written it."""
    folder = PairFolder(path)
    for pair, verdict in zip(pairs, verdicts, strict=True):
        clips = tuple(np.asarray(torch.as_tensor(video).cpu()) for video in (pair.video_a, pair.video_b))
        faces = [np.asarray(torch.as_tensor(face).cpu()) for face in pair.references]
        folder.add(clips, faces, kind=pair.kind, fps=pair.fps, verdict=verdict, who="oracle")
    return folder


def pairs_to_vote_on(count: int, seed: int, device: torch.device | str) -> list[Pair]:
    """`count` pairs that TinyWorld's VACE samples, labelled by the oracle."""
    return sampled_pairs(TINYWORLD_WEIGHTS / "vace", -(-count // EACH), seed, device, EACH)[:count]


def decided_pairs(count: int, seed: int, device: torch.device | str) -> list[Pair]:
    """`count` such pairs of other items without ties."""
    found: list[Pair] = []
    while len(found) < count:
        more = sampled_pairs(TINYWORLD_WEIGHTS / "vace", min(CHUNK, -(-count // 3)), seed, device, EACH_HELD_OUT)
        found += [pair for pair in more if pair.label != TIE]
        seed += 1
    return found[:count]
