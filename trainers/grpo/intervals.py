"""Bootstrap intervals of what training gained, over held-out items and training seeds at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% interval."""

    value: float
    low: float
    high: float


def relative_gain(before: np.ndarray, after: np.ndarray) -> Interval:
    """mean(after) / mean(before) - 1.

    before: [E, I], the base policy under E evaluation noises on I items; after: [S, E, I], of S training seeds on the
    same items and noises. Items are resampled with all their noises and seeds (they are paired), and training seeds
    are resampled too, so the interval speaks of new items and new seeds alike.
    """
    return _interval(before, after, lambda old, new: new / old - 1)


def difference(before: np.ndarray, after: np.ndarray) -> Interval:
    """mean(after) - mean(before), resampled as in `relative_gain`."""
    return _interval(before, after, lambda old, new: new - old)


def _interval(before: np.ndarray, after: np.ndarray, statistic) -> Interval:
    seeds, items = len(after), before.shape[-1]
    old, new = before.mean(0), after.mean(1)  # [I], [S, I]
    generator = np.random.default_rng(0)
    chosen_items = generator.integers(items, size=(RESAMPLES, items))
    chosen_seeds = generator.integers(seeds, size=(RESAMPLES, seeds))
    found = [
        statistic(old[rows].mean(), new[picked][:, rows].mean())
        for rows, picked in zip(chosen_items, chosen_seeds, strict=True)
    ]
    low, high = np.quantile(found, [0.025, 0.975])
    return Interval(float(statistic(old.mean(), new.mean())), float(low), float(high))
