"""The results as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..files import write_atomic
from .iteration import PHASES, seconds_per_video
from .measure import Row

KEYS = {name: key for key, name in PHASES.items()}


@dataclass
class Report:
    """What one call of `bench` has measured so far.

    `rates`: operations per second of matrix products by type. `ratio_error`: how far the probability ratio of the
    trained step was from 1, where the policy was still the one that sampled.
    """

    size: str
    policy: str
    references: int
    config: TrainConfig
    machine: dict[str, Any]
    rates: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    ratio_error: float | None = None

    def iteration(self) -> tuple[dict[str, float], list[str]]:
        """Seconds per video of an iteration by phase, and the phases that are missing."""
        known = {KEYS[row.name]: row.median for row in self.rows if row.name in KEYS and not row.error}
        return seconds_per_video(self.config, known)

    def cells(self, row: Row) -> dict[str, Any]:
        """The cells of one row, beside ours if it is a peer's."""
        ours = next((other for other in self.rows if other.name == row.ours and not other.error), None)
        cells = table_row(row, self.rates, ours)
        if row.cpu_seconds and self.machine.get("device", "").startswith("cpu"):
            cells["CPU s"] = number(statistics.median(row.cpu_seconds))
        return cells

    def table(self) -> list[dict[str, Any]]:
        """The phases, the iteration that they add up to, then all else; by the names of the columns."""
        parts, missing = self.iteration()
        total = {"phase": f"iteration of {self.config.preset}", "per": "video"}
        if missing:
            total["note"] = f"not measured: {', '.join(PHASES[name] for name in missing)}"
        else:
            total["seconds"] = number(sum(parts.values()))
        phases = [self.cells(row) for row in self.rows if row.name in KEYS]
        return [*phases, total, *(self.cells(row) for row in self.rows if row.name not in KEYS)]

    def to_json(self) -> str:
        parts, missing = self.iteration()
        values = {
            "size": self.size,
            "policy": self.policy,
            "references": self.references,
            "machine": self.machine,
            "matmul_flops_per_second": self.rates,
            "rows": [asdict(row) for row in self.rows],
            "iteration": {
                "preset": self.config.preset,
                "seconds_per_video": None if missing else sum(parts.values()),
                "parts": parts,
                "missing": missing,
            },
            "ratio_error": self.ratio_error,
            "settings": self.config.model_dump(mode="json"),
        }
        return json.dumps(values, indent=1) + "\n"

    def write(self, path: Path) -> None:
        write_atomic(path, self.to_json())


def table_row(row: Row, rates: dict[str, float], ours: Row | None = None) -> dict[str, Any]:
    """A phase's cells, as text: seconds, TFLOP, TFLOP/s, its share of the matrix products' rate in the same type.

    `ours`: the phase that a peer's is compared with.
    """
    cells = {"phase": row.name, "per": row.per}
    if row.error:
        return cells | {"note": row.error}
    cells |= {"seconds": number(row.median)}
    if row.first_seconds:
        cells["first +s"] = number(max(0.0, row.first_seconds - row.units * row.median))
    if ours:
        cells["note"] = f"{number(row.median / ours.median)} times ours"
    if row.flops:
        achieved = row.flops / row.median
        cells |= {"TFLOP": number(row.flops / 1e12), "TFLOP/s": number(achieved / 1e12)}
        if rates.get(row.dtype):
            cells["of matmul"] = f"{achieved / rates[row.dtype]:.0%} {row.dtype}"
    if row.peak_bytes:
        cells["peak GiB"] = ", ".join(number(size / 2**30) for size in row.cards or [row.peak_bytes])
    return cells


def number(value: float) -> str:
    """Three digits that count."""
    if value == 0:
        return "0"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine(device: torch.device) -> dict[str, Any]:
    """The device, and the versions that decide its speed."""
    import diffusers
    import transformers

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": f"{device.type}: {name}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
    }
