"""A run's metrics in short, and as a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from .folder import RunFolder

SPARK_POINTS = 60
T = TypeVar("T")


class UntilChanged(Generic[T]):
    """Results that are computed again only when a file or folder that they are made of has changed; the `most` last
    ones are kept."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: dict[Hashable, tuple[object, T]] = {}

    def get(self, key: Hashable, paths: Sequence[Path], compute: Callable[[], T]) -> T:
        """That of `key`, which is made of `paths`."""
        sign = tuple(map(_sign, paths))
        found = self._kept.get(key)
        if found is None or found[0] != sign:
            found = sign, compute()
            while len(self._kept) >= self.most:
                self._kept.pop(next(iter(self._kept)), None)
            self._kept[key] = found
        return found[1]


_histories: UntilChanged[dict[str, Any]] = UntilChanged(256)
_curves: UntilChanged[str] = UntilChanged(32)  # each of some 100 kB


def curves(run: RunFolder, points: int) -> str:
    """The rows of the metrics, thinned to so many of either kind, as JSON."""
    paths = (run.path / "metrics.jsonl",)
    return _curves.get((run.path, points), paths, lambda: json.dumps(run.metrics().thinned(points)))


def metrics_table(run: RunFolder) -> tuple[str, int, int]:
    """The metrics as CSV, a row for each of metrics.jsonl and a column for each name in it; and how many there are."""
    rows = run.read_metrics()
    columns = list(dict.fromkeys(["iteration", "kind", *(name for row in rows for name in row)]))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue(), len(rows), len(columns)


def history(run: RunFolder) -> dict[str, Any]:
    """What a list shows of the metrics; computed again only when they have changed.

    `measured`: the last iteration that has a row, -1 before the first; `size`: bytes of the metrics. `spark`: at most
    60 mean rewards of training iterations, or held-out accuracies of a run that trains a reward. `reward` and `judge`:
    `start` and `now` on the held-out items, None before the first evaluation, the judge also where there is none.
    `best`: the iteration of the best LoRA, None where there is none.
    """
    # The LoRA of an evaluation is written after its metrics.
    return _histories.get(run.path, (run.path / "metrics.jsonl", run.exports_folder), lambda: _history(run))


def _history(run: RunFolder) -> dict[str, Any]:
    metrics = run.metrics()
    rows = metrics.thinned(SPARK_POINTS)
    evaluations = [row for row in rows if row.get("kind") == "evaluation"]
    rewards = [row["reward_mean"] for row in rows if row.get("kind") == "train" and "reward_mean" in row]
    rewards = rewards or [row.get("accuracy") for row in evaluations]
    best = run.best(metrics) if evaluations else None
    return {
        "measured": rows[-1]["iteration"] if rows else -1,
        "size": len(metrics.data),
        "spark": [round(value, 4) for value in rewards if value is not None],
        "reward": _change(evaluations, "reward_mean"),
        "judge": _change(evaluations, "identity"),
        "best": best.iteration if best else None,
    }


def _change(evaluations: list[dict[str, Any]], name: str) -> dict[str, float] | None:
    values = [row[name] for row in evaluations if row.get(name) is not None]
    return {"start": values[0], "now": values[-1]} if values else None


def _sign(path: Path) -> tuple[int, ...] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
