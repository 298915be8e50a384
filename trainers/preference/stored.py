"""The pairs of a folder as training reads them: decoded when they are needed, held out by people."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..pictures.clips import read_clip
from ..pictures.reading import read_pixels
from ..rewards.geometry import frame_count, frame_indices
from .folder import PairFolder
from .loss import INVALID
from .pairs import Pair
from .records import PairRecord

CACHED_BYTES = 2 << 30
"""Of decoded frames and pictures that are kept in memory."""
FPS = 10.0
"""Of clips whose files state none, and that have none in the record."""


class StoredPairs(Sequence[Pair]):
    """The pairs with a verdict of a folder, in the order in which they were added; `records[i]` belongs to `self[i]`.

    `size`: how many bytes of the folder's file are read, all by default. Only the frames that a reward reads are kept
    of a clip, and its rate is lowered to match: the score is the same.
    """

    def __init__(self, folder: PairFolder, size: int | None = None) -> None:
        records = folder.read(size)
        folder.check_files(records)
        labels = {pair: records.label(pair) for pair in records.pairs}
        self.folder = folder
        self.records = [record for pair, record in records.pairs.items() if labels[pair] != INVALID]
        self.labels = [labels[record.pair] for record in self.records]
        self._frames = frame_count(5.0)  # as every reward in the released layout
        self._cache: OrderedDict[tuple[str, float | None], tuple[np.ndarray, float]] = OrderedDict()
        self._cached = 0

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Pair:
        """Raises UserError when a file cannot be read."""
        record = self.records[index]
        (a, rate_a), (b, rate_b) = (self._clip(name, record.fps) for name in (record.clip_a, record.clip_b))
        references = [self._picture(name) for name in record.references]
        return Pair(references, a, b, self.labels[index], rate_a, record.kind, rate_b)

    def _clip(self, name: str, fps: float | None) -> tuple[np.ndarray, float]:
        if (name, fps) not in self._cache:
            frames, stated = read_clip(self.folder.path / name)
            rate = (fps or stated or FPS) * self._frames / len(frames)
            self._keep((name, fps), frames[frame_indices(len(frames), self._frames)].copy(), rate)
        self._cache.move_to_end((name, fps))
        return self._cache[name, fps]

    def _picture(self, name: str) -> np.ndarray:
        if (name, None) not in self._cache:
            self._keep((name, None), read_pixels(self.folder.path / name), 0.0)
        self._cache.move_to_end((name, None))
        return self._cache[name, None][0]

    def _keep(self, key: tuple[str, float | None], pixels: np.ndarray, rate: float) -> None:
        self._cache[key] = pixels, rate
        self._cached += pixels.nbytes
        while self._cached > CACHED_BYTES and len(self._cache) > 1:
            self._cached -= self._cache.popitem(last=False)[1][0].nbytes


class Part(Sequence[Pair]):
    """Some of a sequence's pairs, by their places in it."""

    def __init__(self, pairs: Sequence[Pair], places: Sequence[int]) -> None:
        self.pairs, self.places = pairs, list(places)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Pair:
        return self.pairs[self.places[index]]


def hold_out(records: Sequence[PairRecord], share: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Places of the records to train on, and of those held out: about this share of them, and at least one.

    Pairs with a clip or a reference image in common are never on both sides, so that the accuracy is one on people that
    the reward has not seen. It depends on the files and the seed, not on the order. Raises UserError when all pairs
    hang together.
    """
    group: dict[str, str] = {}

    def root(name: str) -> str:
        while group.setdefault(name, name) != name:
            group[name] = group[group[name]]
            name = group[name]
        return name

    for record in records:
        first, *others = (record.clip_a, record.clip_b, *record.references)
        for other in others:
            group[max(root(first), root(other))] = min(root(first), root(other))
    members: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        members.setdefault(root(record.clip_a), []).append(place)
    wanted = max(1, round(share * len(records)))
    held: list[int] = []
    for name in sorted(members, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest()):
        if len(held) < wanted and len(held) + len(members[name]) < len(records):
            held += members[name]
    if not held:
        raise UserError(
            f"the {len(records)} pairs share people or clips with each other, so none can be held out; add pairs of "
            "other people, or give the held-out pairs in a folder of their own"
        )
    return sorted(set(range(len(records))) - set(held)), sorted(held)


@dataclass(frozen=True)
class VotedPairs:
    """The pairs with a verdict that a reward is trained on, and those that it is measured on."""

    train: Part
    held_out: Part


def voted_pairs(folder: PairFolder, size: int, share: float) -> VotedPairs:
    """Those of the first `size` bytes of the folder's file, a `share` of them held out by people (0: none).

    Raises UserError when no pair has a verdict, a file is missing, or none can be held out.
    """
    pairs = StoredPairs(folder, size)
    if not len(pairs):
        raise UserError(f"{folder.path} has no pair with a verdict; vote first")
    train, held = hold_out(pairs.records, share) if share else (list(range(len(pairs))), [])
    return VotedPairs(Part(pairs, train), Part(pairs, held))
