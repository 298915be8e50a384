"""Where the time of one step goes: torch's profile of it, and the calls that make the program wait for the device."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.profiler import ProfilerActivity, profile

from .measure import Clock, Phase

ROWS = 25
WAITING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")
"""Events during which the program waits: for a stream, for the device, for a number to be read."""
SYNC_WARNING = "called a synchronizing CUDA operation"


def profile_phase(phase: Phase, device: torch.device) -> str:
    """The profile of one run of a phase after a warm-up, as text. The clock itself waits for the device twice."""
    phase.run(Clock(device))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler:
        phase.run(Clock(device))
    events = profiler.key_averages()
    order = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    waiting = [(event.key, event.count, event.cpu_time_total / 1e3) for event in events if event.key in WAITING]
    lines = [f"{phase.name}: {phase.units} units", events.table(sort_by=order, row_limit=ROWS), "calls that wait:"]
    lines += [f"  {count:6} x {name}, {milliseconds:.2f} ms" for name, count, milliseconds in waiting] or ["  none"]
    if device.type == "cuda":
        lines += [f"  {count:6} x {place}" for place, count in waiting_places(phase, device).most_common()]
    return "\n".join(lines)


def waiting_places(phase: Phase, device: torch.device) -> Counter[str]:
    """How often each line of Python waits for a CUDA device in one run of a phase."""
    with _warnings_of_waiting(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        phase.run(Clock(device))
    return Counter(f"{found.filename}:{found.lineno}" for found in caught if SYNC_WARNING in str(found.message))


@contextmanager
def _warnings_of_waiting() -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
