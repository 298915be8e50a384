"""Timing one piece of work: seconds, floating-point operations and memory."""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from ..errors import UserError

OUT_OF_MEMORY = "out of memory"
"""The `error` of a row whose phase needs more memory than there is."""


class Clock:
    """Seconds between `start` and `stop`, which both wait for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.wall, self.cpu = 0.0, 0.0
        self._started = 0.0, 0.0

    def start(self) -> None:
        synchronize(self.device)
        self._started = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        synchronize(self.device)
        self.wall, self.cpu = time.perf_counter() - self._started[0], time.process_time() - self._started[1]


class FlopClock(Clock):
    """A clock that counts floating-point operations between `start` and `stop`: those of products, convolutions and
    attention, two for a multiply-add. Compiled code would hide them, so that it runs eagerly in between.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._counter = FlopCounterMode(display=False, custom_mapping=_uncounted_on_cpu())
        self._between = ExitStack()

    @property
    def flops(self) -> float:
        return float(self._counter.get_total_flops())

    def start(self) -> None:
        super().start()
        self._between.enter_context(torch.compiler.set_stance("force_eager"))
        self._between.enter_context(self._counter)

    def stop(self) -> None:
        self._between.close()
        super().stop()


class _EnoughSteps(Exception):
    """Ends a loop whose timed steps are done."""


@contextmanager
def timed_steps(clock: Clock, steps: int) -> Iterator[Callable[[], None]]:
    """A function to be called once per step of a loop, always at the same place: `steps` steps are timed.

    The clock starts at its first call; when the steps are done, the function raises and the block ends.
    """
    calls = itertools.count()

    def step() -> None:
        done = next(calls)
        if done == 0:
            clock.start()
        elif done == steps:
            clock.stop()
            raise _EnoughSteps

    with suppress(_EnoughSteps):
        yield step


@dataclass(frozen=True)
class Phase:
    """A piece of work: `run` gets a clock, prepares what it needs, and times the rest.

    `units`: how many videos (or what `per` says) one run is. `dtype`: of most of its products. `ours`: the phase
    that a peer's is compared with. `flops`: operations of one unit, where its kernels are not PyTorch's; else counted.
    """

    name: str
    per: str
    units: int
    dtype: torch.dtype
    run: Callable[[Clock], None]
    ours: str = ""
    flops: float = 0.0


@dataclass(frozen=True)
class Row:
    """What was measured of a phase, by its unit.

    `seconds`, `cpu_seconds`: of each repeat. `first_seconds`: of the whole first run, all its units, with compilation
    and caches to fill.
    `cards`: `peak_bytes` of every process, where there are several; then the other numbers are of the slowest.
    `flops`: operations of one unit, recomputed ones included, 0 when they could not be counted. `peak_bytes`: the most
    memory the device (on a CPU: this process, ever) held, models included; 0 when unknown. `error`: why there is no
    measurement, else empty. `ours`: of a peer's row, the phase that it is compared with.
    """

    name: str
    per: str
    dtype: str
    units: int
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    first_seconds: float = 0.0
    flops: float = 0.0
    peak_bytes: int = 0
    error: str = ""
    ours: str = ""
    cards: list[int] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds of one unit. Raises ValueError when there is no measurement."""
        return statistics.median(self.seconds)


def measure(phase: Phase, device: torch.device, repeats: int) -> Row:
    """Count the operations of a phase, run it once more to warm up, then `repeats` times. 0: run it once, timed.

    When memory runs out, compilation fails or the product refuses its inputs, that becomes the row's `error`.
    """
    base = Row(phase.name, phase.per, str(phase.dtype).removeprefix("torch."), phase.units, ours=phase.ours)
    try:
        return _measured(base, phase, device, repeats)
    except (RuntimeError, MemoryError, UserError) as error:
        reason = OUT_OF_MEMORY if is_out_of_memory(error) else f"{type(error).__name__}: {_first_line(error)}"
    # Outside the block: the traceback, which holds the tensors, is let go.
    release_memory(device)
    return Row(**vars(base) | {"error": reason})


def _measured(base: Row, phase: Phase, device: torch.device, repeats: int) -> Row:
    flops, first, clock = 0.0, 0.0, Clock(device)
    if repeats:
        flops = phase.flops or _count(phase, device) / phase.units
        phase.run(clock)
        first = clock.wall
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    wall, cpu = [], []
    for _ in range(max(1, repeats)):
        phase.run(clock)
        wall.append(clock.wall / phase.units)
        cpu.append(clock.cpu / phase.units)
    return Row(
        **vars(base)
        | {
            "seconds": wall,
            "cpu_seconds": cpu,
            "first_seconds": first,
            "flops": flops,
            "peak_bytes": peak_bytes(device),
        }
    )


def slowest(rows: Sequence[Row]) -> Row:
    """One phase as several processes have measured it at the same time, in order of their ranks.

    The operations are those of one process.
    """
    first = next((row for row in rows if row.error), rows[0])
    if len(rows) == 1 or first.error:
        return first
    return replace(
        first,
        seconds=[max(times) for times in zip(*(row.seconds for row in rows), strict=True)],
        cpu_seconds=[max(times) for times in zip(*(row.cpu_seconds for row in rows), strict=True)],
        first_seconds=max(row.first_seconds for row in rows),
        peak_bytes=max(row.peak_bytes for row in rows),
        cards=[row.peak_bytes for row in rows],
    )


def count_flops(run: Callable[[Clock], None], device: torch.device) -> float:
    """The operations of what `run` times with the clock it gets."""
    clock = FlopClock(device)
    try:
        run(clock)
    finally:
        clock.stop()  # also where an error came between
    return clock.flops


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize(device)


def release_memory(device: torch.device) -> None:
    """Give back the memory that nothing uses."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_bytes(device: torch.device) -> int:
    """The most memory allocated on a CUDA device since its statistics were reset; else the process's most ever."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device's memory, or the machine's, ran out."""
    text = str(error)
    return isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "allocate memory" in text)
    )


def _count(phase: Phase, device: torch.device) -> float:
    """0 where this takes more memory than there is (the phase itself may take less), or torch cannot count.

    torch 2.11 refuses attention with fewer heads of keys than of queries, as Qwen2.5-VL has.
    """
    try:
        return count_flops(phase.run, device)
    except AssertionError:
        return 0.0
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    release_memory(device)
    return 0.0


def _uncounted_on_cpu() -> dict:
    """Formulas for the CPU's own kernels of attention and convolution, which torch does not count.

    Queries [B, H, L, E], keys [B, H, S, E], values [B, H, S, V]: two products, of 2 B H L S E and 2 B H L S V
    operations; the backward pass has five: the scores again, and the gradients of scores, queries, keys, values.
    """

    def forward(query, key, value, *_, out_shape=None, **__) -> int:
        return 2 * math.prod(query[:3]) * key[2] * (query[3] + value[3])

    def backward(_, query, key, value, *__, out_shape=None, **___) -> int:
        return 2 * math.prod(query[:3]) * key[2] * (3 * query[3] + 2 * value[3])

    found = {}
    for name, formula in (("", forward), ("_backward", backward)):
        kernel = getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{name}", None)
        if kernel is not None:
            found[kernel] = formula
    convolution = getattr(torch.ops.aten, "mkldnn_convolution", None)
    if convolution is not None:
        found[convolution] = lambda x, weight, *_, out_shape=None, **__: conv_flop_count(x, weight, out_shape)
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
