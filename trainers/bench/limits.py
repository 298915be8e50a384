"""The same short run under several memory plans: what each phase needed against what was planned, and its LoRA."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import TrainConfig
from ..errors import UserError
from ..lora.formats import read_lora
from ..memory.placement import metric_name
from ..memory.plan import GIB, OVERHEAD, MemoryPlan, Workload, choose
from ..memory.sizes import read_sizes
from ..runs.batch import RunBatch
from ..runs.folder import RunFolder

RECIPE: dict[str, Any] = {
    "iterations": 2,
    "rollout": {
        "steps": 4,
        "group_size": 4,
        "groups_per_update": 2,
        "updates_per_iteration": 1,
        "window": {"kind": "random", "size": 1, "last": 3},
    },
    # With the KL, whose forward pass is a part of the update; `auto` would take all memory there is for activations.
    "optim": {"kl": 0.004, "gradient_checkpointing": 1.0},
    "evaluation": {"items": 2, "steps": 4, "every": 2},
}
"""Changes to a preset: eight videos an iteration, with the preset's size and micro-batches."""
TOGETHER = {
    "rollouts": ("sample", "decode", "score"),
    "evaluation: videos": ("evaluation: sample", "evaluation: decode"),
}
"""Phases that are one where all models stay on the GPU."""


@dataclass(frozen=True)
class Outcome:
    """A finished run. `phases`: GiB planned and measured by phase (None: not measured, without CUDA).

    `seconds` of the last iteration's rollouts and of its updates. `difference`: |LoRA - first LoRA| / |first LoRA|.
    """

    name: str
    plan: str
    phases: dict[str, tuple[float, float | None]]
    seconds: tuple[float, float]
    difference: float


def train_once(
    folder: Path,
    name: str,
    config: TrainConfig,
    report: Callable[[str], None],
    reuse: bool = False,
    processes: int = 1,
) -> RunFolder:
    """Train the run in processes of its own. One that is there is replaced, or, with `reuse`, kept if it has finished
    with these settings. Raises UserError when it fails.
    """
    root = folder / name.replace(" ", "-")
    if not reuse:
        shutil.rmtree(root, ignore_errors=True)
    ((_, run),) = RunBatch(root, {"trial": config}, 1, processes).finish(report)
    return run


def planned(config: TrainConfig, references: int) -> MemoryPlan:
    """The plan of the run, from its settings."""
    work, limit = Workload(config, read_sizes(config), references), config.memory.limit
    return choose(work, None if limit is None else int(limit * GIB))


def outcome(name: str, run: RunFolder, first: RunFolder, plan: MemoryPlan) -> Outcome:
    """What the run needed. `first`: the run that it is compared with."""
    rows = run.training()
    phases: dict[str, tuple[float, float | None]] = {}
    for phase, needs in _phases(plan):
        measured = [row[metric_name(phase)] for row in rows if metric_name(phase) in row]
        phases[phase] = needs / GIB, max(measured, default=None)
    return Outcome(
        name,
        plan.name,
        phases,
        (rows[-1]["seconds_rollout"], rows[-1]["seconds_update"]),
        lora_difference(run.newest().path, first.newest().path),
    )


def lora_difference(path: Path, other: Path) -> float:
    """|a - b| / |b| over all factors that begin at zero, of two LoRA files. Raises UserError for other layers."""
    loras = [read_lora(file).modules for file in (path, other)]
    if loras[0].keys() != loras[1].keys():
        raise UserError(f"{path} and {other} change different layers")
    ups = [torch.cat([up.float().flatten() for _, up in modules.values()]) for modules in loras]
    return math.nan if not ups[1].any() else ((ups[0] - ups[1]).norm() / ups[1].norm()).item()


def rows(found: Outcome) -> Iterator[dict[str, Any]]:
    """A row for each phase, the run's other numbers in the first."""
    beside = {
        "run": found.name,
        "plan": found.plan,
        "rollouts s": f"{found.seconds[0]:.1f}",
        "update s": f"{found.seconds[1]:.1f}",
        "LoRA difference": f"{found.difference:.2e}",
    }
    for phase, (expected, measured) in found.phases.items():
        used = "" if measured is None else f"{measured:.2f}"
        yield {"run": "", "phase": phase, "planned GiB": f"{expected:.2f}", "used GiB": used} | beside
        beside = {}


def _phases(plan: MemoryPlan) -> Iterator[tuple[str, int]]:
    # PyTorch counts neither the libraries' work spaces nor what lies unused between tensors.
    needs = {phase.name: phase.total - OVERHEAD for phase in plan.phases}
    if plan.name == "resident":
        for name, parts in TOGETHER.items():
            needs[name] = max(needs.pop(part) for part in parts)
    yield from needs.items()
