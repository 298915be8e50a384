"""The results as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
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
    """What one call of `bench` has measured so far. `rates`: operations per second of matrix products by type."""

    size: str
    policy: str
    references: int
    config: TrainConfig
    machine: dict[str, Any]
    rates: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def iteration(self) -> tuple[dict[str, float], list[str]]:
        """Seconds per video of an iteration by phase, and the phases that are missing."""
        return seconds_per_video(self.config, {KEYS[row.name]: row.median for row in self.rows if not row.error})

    def table(self) -> list[dict[str, Any]]:
        """One row per phase, and the iteration's, by the names of the columns."""
        rows = [table_row(row, self.rates) for row in self.rows]
        parts, missing = self.iteration()
        total = {"phase": f"iteration of {self.config.preset}", "per": "video"}
        lacking = ", ".join(PHASES[name] for name in missing)
        rows.append(
            total | ({"note": f"not measured: {lacking}"} if missing else {"seconds": number(sum(parts.values()))})
        )
        return rows

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
            "settings": self.config.model_dump(mode="json"),
        }
        return json.dumps(values, indent=1) + "\n"

    def write(self, path: Path) -> None:
        write_atomic(path, self.to_json())


def table_row(row: Row, rates: dict[str, float]) -> dict[str, Any]:
    """A phase's cells, as text: seconds, TFLOP, TFLOP/s, its share of the matrix products' rate in the same type."""
    cells = {"phase": row.name, "per": row.per}
    if row.error:
        return cells | {"note": row.error}
    cells |= {"seconds": number(row.median), "first": number(row.first_seconds)}
    if row.flops:
        achieved = row.flops / row.median
        cells |= {"TFLOP": number(row.flops / 1e12), "TFLOP/s": number(achieved / 1e12)}
        if rates.get(row.dtype):
            cells["of matmul"] = f"{achieved / rates[row.dtype]:.0%} {row.dtype}"
    if row.peak_bytes:
        cells["peak GiB"] = number(row.peak_bytes / 2**30)
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
