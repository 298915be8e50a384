"""The same short run on one GPU and on several: seconds of an iteration, efficiency, and what more GPUs would take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import TrainConfig
from ..runs.folder import RunFolder
from .limits import lora_difference

PREDICTED = (8, 64, 256)


@dataclass(frozen=True)
class Scaled:
    """The last iteration of a run on `processes` GPUs: seconds of its rollouts and of its updates.

    `mean`, `slowest`: seconds of both that the processes worked on their own parts: their mean, and the slowest.
    `difference`: |LoRA - first LoRA| / |first LoRA|, of the run with the fewest processes.
    """

    processes: int
    videos: int
    rollouts: float
    updates: float
    mean: float
    slowest: float
    difference: float

    @property
    def seconds(self) -> float:
        return self.rollouts + self.updates

    @property
    def exchange(self) -> float:
        """Seconds that no process worked on its own part: gathering, gradients, the optimiser."""
        return self.seconds - self.slowest


@dataclass(frozen=True)
class CostModel:
    """An iteration's seconds: `shared` / processes, as far as whole videos can be shared out, and `fixed`."""

    shared: float
    fixed: float
    videos: int

    def seconds(self, processes: int) -> float:
        """Of one iteration. The process with the most videos decides."""
        return self.shared * -(-self.videos // processes) / self.videos + self.fixed

    def efficiency(self, processes: int) -> float:
        return self.seconds(1) / (processes * self.seconds(processes))


def scaled(processes: int, config: TrainConfig, run: RunFolder, first: RunFolder) -> Scaled:
    """What a finished run took."""
    row, rollout = run.training()[-1], config.rollout
    return Scaled(
        processes,
        rollout.groups * rollout.group_size,
        row["seconds_rollout"],
        row["seconds_update"],
        row["seconds_rollout_mean"] + row["seconds_update_mean"],
        row["seconds_rollout_slowest"] + row["seconds_update_slowest"],
        lora_difference(run.newest().path, first.newest().path),
    )


def fit(found: Sequence[Scaled]) -> CostModel:
    """Least squares over the runs, neither part below zero; with one run everything counts as shared."""
    most = [-(-run.videos // run.processes) / run.videos for run in found]
    seconds = [run.seconds for run in found]
    if len(found) == 1:
        return CostModel(seconds[0] / most[0], 0.0, found[0].videos)
    shared, fixed = np.polyfit(most, seconds, 1).tolist()
    if shared < 0:
        return CostModel(0.0, float(np.mean(seconds)), found[0].videos)
    if fixed < 0:
        shared, fixed = float(np.dot(most, seconds) / np.dot(most, most)), 0.0
    return CostModel(shared, fixed, found[0].videos)


def rows(found: Sequence[Scaled]) -> Iterator[dict[str, Any]]:
    """A row for each run. Efficiency, waiting, exchange and slower work are parts of the GPUs' time, and add up to 1.

    Waiting: for the slowest process. Slower work: what the same work takes longer than with the fewest processes.
    """
    first = found[0]
    for run in found:
        more = run.processes / first.processes
        whole = more * run.seconds
        yield {
            "GPUs": run.processes,
            "videos": run.videos,
            "rollouts s": f"{run.rollouts:.1f}",
            "updates s": f"{run.updates:.1f}",
            "s per video": f"{run.seconds / run.videos:.2f}",
            "times as fast": f"{first.seconds / run.seconds:.2f}",
            "rollouts": f"{first.rollouts / run.rollouts / more:.1%}",
            "updates": f"{first.updates / run.updates / more:.1%}",
            "efficiency": f"{first.seconds / whole:.1%}",
            "waiting": f"{((run.slowest - run.mean) * more - first.slowest + first.mean) / whole:.1%}",
            "exchange": f"{(run.exchange * more - first.exchange) / whole:.1%}",
            "slower work": f"{(run.mean * more - first.mean) / whole:.1%}",
            "LoRA difference": f"{run.difference:.1e}",
        }


def predictions(model: CostModel, config: TrainConfig) -> Iterator[dict[str, Any]]:
    """A row for each number of GPUs: an iteration of the whole recipe, from the time of a video here."""
    rollout = config.rollout
    whole = CostModel(
        model.shared / model.videos * rollout.groups * rollout.group_size,
        model.fixed,
        rollout.groups * rollout.group_size,
    )
    for processes in PREDICTED:
        yield {
            "GPUs": processes,
            "videos of an iteration": whole.videos,
            "predicted s": f"{whole.seconds(processes):.1f}",
            "predicted efficiency": f"{whole.efficiency(processes):.0%}",
        }
