"""Which pairs each step of a training sees: a function of the seed and the step, so that a resume sees the same."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from ..errors import UserError
from .pairs import Pair
from .stored import Part

PairSource = Sequence[Pair] | Iterable[Sequence[Pair]] | Callable[[int], Sequence[Pair]]
"""A list of pairs, shuffled anew in every epoch; an endless stream of batches; or the batch of every step from 0."""


def batches(pairs: PairSource, batch_size: int, seed: int) -> Callable[[int], Sequence[Pair]]:
    """The batch of each step, to be called with 0, 1, …; a stream can be called in this order only.

    Raises UserError for an empty list.
    """
    if isinstance(pairs, Sequence):
        return Epochs(pairs, batch_size, seed)
    if callable(pairs):
        return pairs
    stream = iter(pairs)
    return lambda step: next(stream, ())


class Epochs:
    """Every pair once per epoch, in an order of its own; the last batch of an epoch may be smaller."""

    def __init__(self, pairs: Sequence[Pair], batch_size: int, seed: int) -> None:
        if not len(pairs):
            raise UserError("there are no preference pairs to train on; give at least one")
        self.pairs, self.size, self.per_epoch = pairs, batch_size, -(-len(pairs) // batch_size)
        self._order = lru_cache(maxsize=2)(
            lambda epoch: random.Random(f"{seed} {epoch}").sample(range(len(pairs)), len(pairs))
        )

    def __call__(self, step: int) -> Part:
        epoch, place = divmod(step, self.per_epoch)
        # Of several processes each reads its own pairs of a batch.
        return Part(self.pairs, self._order(epoch)[place * self.size : (place + 1) * self.size])


class CosineMix:
    """The published second stage: automatic pairs first, pairs voted on by people at the end.

    At step t of `steps` a pair is an automatic one with probability (1 + cos(pi t / steps)) / 2.
    """

    def __init__(
        self, automatic: Sequence[Pair], voted: Sequence[Pair], batch_size: int, steps: int, seed: int
    ) -> None:
        if not len(automatic) or not len(voted):
            raise UserError(
                f"the mix needs both kinds: there are {len(automatic)} automatic and {len(voted)} voted pairs"
            )
        self.automatic, self.voted = automatic, voted
        self.size, self.steps, self.seed = batch_size, steps, seed

    def automatic_share(self, step: int) -> float:
        """Of automatic pairs at this step."""
        return (1 + math.cos(math.pi * min(1.0, step / max(1, self.steps)))) / 2

    def __call__(self, step: int) -> list[Pair]:
        chance, share = random.Random(f"{self.seed} {step}"), self.automatic_share(step)
        sources = [self.automatic if chance.random() < share else self.voted for _ in range(self.size)]
        return [source[chance.randrange(len(source))] for source in sources]
