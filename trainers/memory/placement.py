"""Which of a run's models are on the device while it works."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .beside import run_beside
from .blocks import BlockSwap
from .host import Offloaded
from .plan import GIB, MemoryPlan
from .shards import shard_blocks

TRANSFORMER, VAE, REWARD = "transformer", "VAE", "reward"


class Placement:
    """Moves models between phases, as a plan says; without a plan they stay where they are.

    `moves`: whether any does. `shards`: whether the transformer's blocks are split over the processes, so that all
    must make the same passes. `peaks`: the most GPU memory that each phase used so far since `take_peaks`, in GiB.
    """

    def __init__(self, plan: MemoryPlan | None = None, device: torch.device | None = None) -> None:
        self.moves = plan is not None and plan.name != "resident"
        self.shards = plan is not None and plan.name == "sharded"
        self._swaps = plan is not None and plan.name == "block_swap"
        self._device = device or torch.device("cpu")
        self._parts: dict[str, Offloaded] = {}
        self._own: dict[str, torch.device] = {}
        self.peaks: dict[str, float] = {}

    def add(self, name: str, model: nn.Module, blocks: Iterable[nn.Module] = ()) -> None:
        """Take over a model, as it is trained (with its LoRA).

        `blocks`: those that may be swapped or sharded, as they run.
        """
        own = list(blocks)
        if not self.moves:
            model.to(self._device)
        elif self._swaps and own:
            BlockSwap(own, self._device)
            move_rest(model, own, self._device)
        elif self.shards and own:
            move_rest(model, own, self._device)
            shard_blocks(model, own, self._device)
        else:
            self._parts[name] = Offloaded(model, self._device)

    def add_own(self, name: str, device: torch.device) -> None:
        """A model that has `device` to itself: it is never moved, and its stage of a pipeline runs beside others."""
        self._own[name] = device

    @contextmanager
    def phase(self, name: str, *needed: str) -> Iterator[None]:
        """Within the block the `needed` models are on the device, and others only if the plan keeps them there."""
        for part, model in self._parts.items():
            if part not in needed:
                model.unload()
        cuda = self._device.type == "cuda"
        if cuda:
            # A free block of a model's size would otherwise be cut up for the small tensors of the next phase.
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        for part in needed:
            if part in self._parts:
                self._parts[part].load()
        try:
            yield
        finally:
            if cuda:
                peak = torch.cuda.max_memory_allocated(self._device) / GIB
                self.peaks[name] = max(self.peaks.get(name, 0.0), peak)

    def pipeline(self, name: str, *stages: tuple[str, str, Callable[[Iterable], Iterator]]) -> list:
        """Run stages that follow each other, each (its name, the model that it needs, results -> its own results).

        Where the plan moves models, each stage does all of its work before the next one begins; else every result goes
        through all stages at once, as one phase `name`. A last stage whose model has a device to itself works on the
        results of the stage before while that makes the next ones. Returns the last stage's results.
        """
        phases = [] if self.moves else [(name, (), list(stages))]
        for stage, needed, work in stages if self.moves else ():
            if needed in self._own:
                phases[-1][2].append((stage, needed, work))
            else:
                phases.append((stage, (needed,), [(stage, needed, work)]))
        results: Iterable = ()
        for phase, parts, chained in phases:
            with self.phase(phase, *parts):
                for _, _, work in chained[:-1]:
                    results = work(results)
                _, needed, work = chained[-1]
                own = self._own.get(needed)
                results = list(work(results)) if own is None else run_beside(work, results, own)
        return list(results)

    def take_peaks(self) -> dict[str, float]:
        """`peaks`, which begin anew."""
        peaks, self.peaks = self.peaks, {}
        return peaks


def metric_name(phase: str) -> str:
    """What a phase's peak is called in metrics.jsonl: `gib_evaluation_score`."""
    return "gib_" + phase.replace(":", "").replace(" ", "_")


def move_rest(model: nn.Module, blocks: list[nn.Module], device: torch.device) -> None:
    """Move everything that is in none of the blocks."""
    inside = {id(tensor) for block in blocks for tensor in (*block.parameters(), *block.buffers())}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in inside:
            tensor.data = tensor.data.to(device)
