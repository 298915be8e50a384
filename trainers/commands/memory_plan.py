"""What `train --plan` prints: the GPU memory that a run is expected to need, and the time of an iteration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..config import TrainConfig

if TYPE_CHECKING:
    from ..memory.plan import MemoryPlan, Workload

LEAST_WIDTH = 1024  # of hidden states; the times of smaller models were not measured


def check_memory(config: TrainConfig, processes: int = 1) -> None:
    """Raises UserError when the GPU is too small for the run, before anything is loaded or written."""
    from accelerate import PartialState

    from ..grpo.models import plan_memory

    device = PartialState().device
    if device.type == "cuda":
        plan_memory(config, device, _most_references(config), processes)


def plan_lines(config: TrainConfig, processes: int = 1) -> Iterator[str]:
    """The plans, their expected needs and times; what is chosen is shown phase by phase. Loads nothing.

    Raises UserError as the run would.
    """
    from accelerate import PartialState

    from ..grpo.models import available_bytes
    from ..memory.plan import Workload, choose, gib
    from ..memory.sizes import read_sizes

    device = PartialState().device
    limited = device.type == "cuda" or config.memory.limit is not None
    available = available_bytes(config, device) if limited else None
    work = Workload(config, read_sizes(config), _most_references(config), processes)
    yield f"GPU memory for the run: {gib(available) if limited else 'unlimited (no GPU, and memory.limit is not set)'}"
    for name in work.plans:
        plan = work.plan(name, available)
        fits = "fits" if plan.fits else "does not fit"
        yield f"{name:11} {gib(plan.largest.total):>9} in `{plan.largest.name}`: {fits}{_time(work, plan)}"
    chosen = choose(work, available)
    yield f"\nmemory.plan {config.memory.plan}: {chosen.name}"
    yield from chosen.lines()
    if chosen.swap_text:
        yield "the blocks of the text encoder are swapped"
    if chosen.vae_pixels:
        yield f"the VAE takes {chosen.vae_pixels / 2**20:.1f} million pixels at once"
    sizes = work.sizes
    kept = sizes.transformer + sizes.vae + sizes.reward
    yield f"host memory of each process: {gib(kept)} for the models, {gib(sizes.text_encoder)} while texts are encoded"


def _time(work: Workload, plan: MemoryPlan) -> str:
    from ..grpo.cost import seconds_per_iteration

    if work.sizes.width < LEAST_WIDTH:
        return ""
    seconds = seconds_per_iteration(work, plan.name)
    return f", about {seconds:.0f} s an iteration on an H100, scoring left out"


def _most_references(config: TrainConfig) -> int:
    from ..grpo.evaluate import evaluated_items
    from ..runs.inputs import resolve_prompts

    items, held_out = resolve_prompts(config)
    return max(len(item.references) for item in (*items, *evaluated_items(config, held_out)))
