"""A run's metrics in short, and as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .folder import RunFolder

SPARK_POINTS = 60
CACHED = 256  # runs
T = TypeVar("T")

_cached: dict[tuple[Path, str], tuple[object, Any]] = {}


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
    return _until_changed(run, (run.path / "metrics.jsonl", run.exports_folder), _history)


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


def _until_changed(run: RunFolder, paths: Sequence[Path], compute: Callable[[RunFolder], T]) -> T:
    """`compute(run)`, cached until one of the files or folders is another one."""
    sign = tuple(_sign(path) for path in paths)
    key = (run.path, compute.__name__)
    if key not in _cached or _cached[key][0] != sign:
        while len(_cached) >= CACHED:
            _cached.pop(next(iter(_cached)), None)
        _cached[key] = sign, compute(run)
    return _cached[key][1]


def _sign(path: Path) -> tuple[int, ...] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
