"""The processes that train together: who does what, what they exchange, and whether all got through."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate, groupby
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list, gather_object

from .errors import Stopped, UserError

T = TypeVar("T")
SUMMED_AT_ONCE = 2**26
"""Numbers that are sent together; a larger tensor is sent with no more than so many others."""


def rank_slice(costs: Sequence[int], rank: int, ranks: int) -> list[int]:
    """The places of `costs` that process `rank` works on, in order; sums differ by one cost at most.

    Places of equal cost are shared out evenly, neighbours together, so that micro-batches are full; what is left over
    goes to the processes with the least.
    """
    sums, own = [0] * ranks, []
    for cost in sorted(set(costs), reverse=True):
        places = [place for place, its in enumerate(costs) if its == cost]
        even, over = divmod(len(places), ranks)
        more = sorted(range(ranks), key=sums.__getitem__)[:over]
        numbers = [even + (each in more) for each in range(ranks)]
        first = sum(numbers[:rank])
        own += places[first : first + numbers[rank]]
        sums = [total + number * cost for total, number in zip(sums, numbers, strict=True)]
    return sorted(own)


@dataclass(frozen=True)
class WorkTimes:
    """Seconds that the processes worked on their own parts: their mean, and those of the slowest."""

    mean: float = 0.0
    slowest: float = 0.0


class Ranks:
    """The processes of one training, seen from one of them (accelerate's `Accelerator` underneath)."""

    def __init__(self, timeout_minutes: float = 120.0, **options: Any) -> None:
        """`timeout_minutes`: how long processes wait for each other. `options`: more of accelerate's `Accelerator`."""
        # accelerate joins processes on CPUs only when it is asked for the CPU.
        on_cpus = "LOCAL_WORLD_SIZE" in os.environ and not torch.cuda.is_available()
        limit = InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes))
        self.accelerator = Accelerator(cpu=on_cpus, kwargs_handlers=[limit], **options)
        self._times = WorkTimes()

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def count(self) -> int:
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this is the process that reports and writes."""
        return self.accelerator.is_main_process

    @property
    def is_local_main(self) -> bool:
        """Whether this is the first process of its machine."""
        return self.accelerator.is_local_main_process

    @property
    def on_several_machines(self) -> bool:
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) < self.count

    def slice(self, costs: Sequence[int]) -> list[int]:
        """The part of this process of what costs so much each (see `rank_slice`)."""
        return rank_slice(costs, self.rank, self.count)

    def least(self, number: int) -> int:
        """The least of all processes' numbers."""
        return min(gather_object([number]))

    def broadcast(self, value: T) -> T:
        """The main process's value."""
        return broadcast_object_list([value])[0]

    def from_main(self, work: Callable[[], T]) -> T:
        """What `work` returns in the main process, which alone runs it; its errors reach all processes."""
        return self.broadcast(self.on_all_ranks(lambda: work() if self.is_main else None))

    def send_to_main(self, value: T | None, owner: int) -> T | None:
        """The `value` of process `owner` in the main process, None in all others; all of them know who the owner is.

        For what is too large for all to get.
        """
        if owner == 0 or self.rank not in (0, owner):
            return value if self.is_main else None
        box = [value]
        if self.is_main:
            torch.distributed.recv_object_list(box, owner)
            return box[0]
        torch.distributed.send_object_list(box, 0)
        return None

    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace every tensor by its sum over all processes; they are of one type and on one device.

        Many small ones, as a LoRA has, are sent at once.
        """
        if self.count == 1:
            return
        ends = accumulate(tensor.numel() for tensor in tensors)
        for _, sent in groupby(zip(ends, tensors, strict=True), lambda one: one[0] // SUMMED_AT_ONCE):
            own = [tensor for _, tensor in sent]
            total = torch.cat([tensor.flatten() for tensor in own])
            torch.distributed.all_reduce(total)
            for tensor, part in zip(own, total.split([tensor.numel() for tensor in own]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by the sum over all processes; a missing one counts as zero."""
        own = list(parameters)
        for parameter in own:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.sum([parameter.grad for parameter in own])

    def on_all_ranks(self, work: Callable[[], T]) -> T:
        """Run this process's own part of something; errors as `gather_results`."""
        results: list[T] = []

        def kept() -> Sequence[None]:
            results.append(work())
            return ()

        self.gather_results(kept)
        return results[0]

    def gather_results(self, work: Callable[[], Sequence[T]]) -> list[T]:
        """Run this process's own part of something, and return the values of all processes in order of their ranks.

        What ends it in one process ends it in all, so none waits for ever. `work` must not communicate with other
        processes. Raises what `work` raised; in the other processes Stopped, or UserError with the message of the first
        process that failed.
        """
        started = time.perf_counter()
        try:
            values = list(work())
        except Exception as error:
            if not self._can_meet():
                # The others wait for this one elsewhere, until the launcher ends them.
                raise
            ends, _ = self._meet(started, [], (isinstance(error, Stopped), str(error) or type(error).__name__))
            if isinstance(error, Stopped) and not ends[0][0]:
                raise UserError(ends[0][1]) from error
            raise
        ends, found = self._meet(started, values)
        for stopped, message in ends:
            raise Stopped if stopped else UserError(message)
        return found

    def take_times(self) -> WorkTimes:
        """How long the processes worked in `gather_results` and `on_all_ranks`; counted anew from here."""
        times, self._times = self._times, WorkTimes()
        return times

    def close(self) -> None:
        """Leave the process group, when all processes have done their work."""
        if self.count > 1:
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()

    def _can_meet(self) -> bool:
        """Whether the others, who may be at work, come to know that this process has failed."""
        return True

    def _counts(self) -> bool:
        """Whether this process's values are wanted: those of no other are the same."""
        return True

    def _meet(
        self, started: float, values: list, end: tuple[bool, str] | None = None
    ) -> tuple[list[tuple[bool, str]], list]:
        """(stopped, message) of all processes that did not get through, errors before stops, and all values.

        `started`: when this process began its part; `end`: of this process, unless it got through.
        """
        met = gather_object([(time.perf_counter() - started, end, values if self._counts() else [])])
        seconds = [own for own, _, _ in met]
        self._times = WorkTimes(self._times.mean + sum(seconds) / len(seconds), self._times.slowest + max(seconds))
        return sorted(end for _, end, _ in met if end), [value for _, _, part in met for value in part]
