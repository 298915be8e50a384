"""Comparing a recomputed quantity with the one in a golden case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """The error of one recomputed quantity.

    `error` is the largest absolute difference, for kind `relative` divided by the largest expected magnitude, for
    kind `exact` the number of unequal entries. `relative` is the relative error of every kind (0 when all entries are
    equal).
    """

    name: str
    error: float
    tolerance: float
    kind: Literal["absolute", "relative", "exact"]
    relative: float = math.nan

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance


def compare(
    name: str, found, expected, tolerance: float = 0.0, kind: Literal["absolute", "relative", "exact"] = "absolute"
) -> Check:
    """Compare tensors, arrays or numbers; a wrong shape or a number that is not finite is an infinite error."""
    import numpy as np
    import torch

    ours, theirs = (
        np.asarray(v.detach().double().cpu() if isinstance(v, torch.Tensor) else v, np.float64)
        for v in (found, expected)
    )
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return Check(name, math.inf, tolerance, kind, math.inf)
    if not ours.size:
        return Check(name, 0.0, tolerance, kind, 0.0)
    difference = float(np.abs(ours - theirs).max())
    magnitude = float(np.abs(theirs).max())
    relative = difference / magnitude if magnitude else (0.0 if difference == 0 else math.inf)
    error = {"absolute": difference, "relative": relative, "exact": float((ours != theirs).sum())}[kind]
    return Check(name, error, tolerance, kind, relative)


def equal(name: str, found, expected) -> Check:
    """Compare two names, lists or mappings; the error is the number of entries that differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        wrong = sum(found.get(k) != expected.get(k) for k in found.keys() | expected.keys())
    else:
        wrong = int(found != expected)
    return Check(name, float(wrong), 0.0, "exact", float(wrong > 0))


def checks_table(results: Sequence[Check]) -> str:
    """One line per check: name, relative error, error, tolerance and its kind, `ok` or `OUT`."""
    width = max([8, *(len(r.name) for r in results)])
    lines = [f"{'quantity':<{width}}  {'relative':>9}  {'error':>9}  {'tolerance':>9}  {'kind':<8}"]
    for r in results:
        relative = "-" if math.isnan(r.relative) else f"{r.relative:9.2e}"
        lines.append(
            f"{r.name:<{width}}  {relative:>9}  {r.error:9.2e}  {r.tolerance:9.2e}  {r.kind:<8}  "
            f"{'ok' if r.ok else 'OUT'}"
        )
    return "\n".join(lines)
