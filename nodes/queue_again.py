"""A workflow that the editor queues again when a run is ready for the rest of it; the queue is free until then."""

from __future__ import annotations

from ..trainers.runs.folder import RunFolder
from ..trainers.runs.registry import is_alive

NEVER, FIRST_LORA, END, BOTH = "no", "at the first LoRA", "at the end", "at both"
QUEUE_AGAIN = [NEVER, FIRST_LORA, END, BOTH]


def next_time(run: RunFolder, choice: str) -> str | None:
    """The moment at which the editor queues the workflow again; None when there is none to wait for."""
    if not is_alive(run):
        return None
    if choice in (FIRST_LORA, BOTH) and not _is_trained(run):
        return FIRST_LORA
    return END if choice in (END, BOTH) else None


def hold_back(run: RunFolder, choice: str) -> bool:
    """Whether the run's LoRAs must not be used yet."""
    return next_time(run, choice) == (END if choice == END else FIRST_LORA)


def _is_trained(run: RunFolder) -> bool:
    return any(export.iteration for export in run.exports())
