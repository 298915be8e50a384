"""What the processes of one run agree on: who does what, and whether all got through."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import (
    broadcast_object_list,
    gather_object,
    is_tensorboard_available,
    is_wandb_available,
)

from ..config import RewardConfig
from ..errors import UserError
from .interrupt import Stopped
from .lockstep import Lockstep

if TYPE_CHECKING:
    from ..policies.context import Context

T = TypeVar("T")
TRACKERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}


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


def require_trackers(trackers: Sequence[str]) -> None:
    """Raises UserError when the package of a tracker is not installed."""
    missing = [name for name in trackers if not TRACKERS[name]()]
    if missing:
        raise UserError(
            f"trackers: the package of {', '.join(missing)} is not installed; run `pip install {' '.join(missing)}`"
        )


def require_context(context: int, processes: int) -> None:
    """Raises UserError when so many processes cannot be divided into groups of `context`."""
    if processes % context:
        raise UserError(
            f"parallel.context is {context}, and {processes} process{'es' * (processes > 1)} cannot be divided into "
            f"groups of {context}; start a multiple of it with --processes, or set parallel.context to 1"
        )


class Ranks:
    """The processes of one run, seen from one of them (accelerate's `Accelerator` underneath).

    With `parallel.context` above 1 neighbouring processes form groups: `context` is this process's, else None. The
    processes of a group have the same slice of all work, and the same results. `lockstep`: set where the policy's
    passes can only be made by all processes together.
    """

    def __init__(
        self,
        timeout_minutes: float = 120.0,
        trackers: Sequence[str] = (),
        folder: Path | None = None,
        context: int = 1,
    ) -> None:
        """`timeout_minutes`: how long processes wait for each other. `trackers`: accelerate's, which write to `folder`.
        `context`: processes that compute a video together.

        Raises UserError when the package of a tracker is not installed, or as `form_groups`.
        """
        require_trackers(trackers)
        self.lockstep: Lockstep | None = None
        # accelerate joins processes on CPUs only when it is asked for the CPU.
        on_cpus = "LOCAL_WORLD_SIZE" in os.environ and not torch.cuda.is_available()
        self.accelerator = Accelerator(
            cpu=on_cpus,
            log_with=list(trackers) or None,
            project_dir=folder,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes))],
        )
        self._times = WorkTimes()
        self.context: Context | None = None
        self.form_groups(context)

    def form_groups(self, context: int) -> None:
        """From here on so many processes compute a video together. Raises UserError when they cannot be divided so."""
        require_context(context, self.count)
        if context > 1:
            self.context = self._join_group(context)

    def start_trackers(self, run: str, settings: dict) -> None:
        """Open the trackers for a run; its settings go along."""
        if self.accelerator.log_with:
            flat = {name: str(value) for name, value in _flat(settings)}
            self.accelerator.init_trackers(run, config=flat)

    def log(self, row: dict, step: int) -> None:
        """Send a row's numbers to the trackers, if there are any."""
        if self.accelerator.log_with:
            self.accelerator.log({k: v for k, v in row.items() if isinstance(v, (int, float))}, step=step)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def reward_device(self, config: RewardConfig) -> torch.device | None:
        """The device that the rewards have to themselves: the GPU after those of this machine's processes; without GPUs
        the CPU, where they have a thread. None: they share the policy's.

        Raises UserError when there is no such GPU.
        """
        if config.device == "same":
            return None
        if self.device.type != "cuda":
            return self.device
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if processes >= torch.cuda.device_count():
            raise UserError(
                f"reward.device is `own`, and this machine's {processes} processes have all "
                f"{torch.cuda.device_count()} GPUs; start one process less, or set reward.device to `same`"
            )
        return torch.device("cuda", processes)

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def is_local_main(self) -> bool:
        """Whether this is the first process of its machine."""
        return self.accelerator.is_local_main_process

    @property
    def on_several_machines(self) -> bool:
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) < self.count

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def count(self) -> int:
        return self.accelerator.num_processes

    @property
    def groups(self) -> int:
        """Of processes that work on different videos."""
        return self.count // (self.context.size if self.context else 1)

    @property
    def group(self) -> int:
        """The number of this process's group."""
        return self.rank * self.groups // self.count

    def slice(self, costs: Sequence[int]) -> list[int]:
        """The part of this process's group of what costs so much each (see `rank_slice`)."""
        return rank_slice(costs, self.group, self.groups)

    def least(self, number: int) -> int:
        """The least of all processes' numbers."""
        return min(gather_object([number]))

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

    def broadcast(self, value: T) -> T:
        """The main process's value."""
        return broadcast_object_list([value])[0]

    def from_main(self, work: Callable[[], T]) -> T:
        """What `work` returns in the main process, which alone runs it; its errors reach all processes."""
        return self.broadcast(self.on_all_ranks(lambda: work() if self.is_main else None))

    def close(self) -> None:
        """Leave the process group, when all processes have done their work."""
        if self.count > 1:
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by the sum over all processes; a missing one counts as zero.

        All of them are sent at once: a LoRA has hundreds of small ones. They are of one type and on one device.
        """
        own = list(parameters)
        for parameter in own:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.count > 1:
            total = self.accelerator.reduce(torch.cat([parameter.grad.flatten() for parameter in own]), "sum")
            for parameter, part in zip(own, total.split([parameter.numel() for parameter in own]), strict=True):
                parameter.grad = part.view_as(parameter)

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
        processes, but for the policy's passes under `lockstep`. Raises what `work` raised; in the other processes
        Stopped, or UserError with the message of the first process that failed.
        """
        started, lockstep = time.perf_counter(), self.lockstep
        try:
            if lockstep is not None:
                lockstep.begin()
            values = list(work())
            if lockstep is not None:
                lockstep.finish()
        except Exception as error:
            if lockstep is not None and not lockstep.leave():
                # The others wait in a pass, until the launcher ends them.
                raise
            ends, _ = self._meet(started, [], (isinstance(error, Stopped), str(error) or type(error).__name__))
            if isinstance(error, Stopped) and not ends[0][0]:
                raise UserError(ends[0][1]) from error
            raise
        ends, found = self._meet(started, values)
        for stopped, message in ends:
            raise Stopped if stopped else UserError(message)
        return found

    def _meet(
        self, started: float, values: list, end: tuple[bool, str] | None = None
    ) -> tuple[list[tuple[bool, str]], list]:
        """(stopped, message) of all processes that did not get through, errors before stops, and all values.

        `started`: when this process began its part; `end`: of this process, unless it got through.
        """
        counts = self.context is None or self.context.rank == 0  # a group's processes have the same values
        met = gather_object([(time.perf_counter() - started, end, values if counts else [])])
        seconds = [own for own, _, _ in met]
        self._times = WorkTimes(self._times.mean + sum(seconds) / len(seconds), self._times.slowest + max(seconds))
        return sorted(end for _, end, _ in met if end), [value for _, _, part in met for value in part]

    def take_times(self) -> WorkTimes:
        """How long the processes worked in `gather_results` and `on_all_ranks`; counted anew from here."""
        times, self._times = self._times, WorkTimes()
        return times

    def _join_group(self, size: int) -> Context:
        # It imports diffusers, which a command that only counts processes has no use for.
        from torch.distributed.device_mesh import init_device_mesh

        from ..policies.context import Context

        mesh = init_device_mesh(self.device.type, (self.count // size, size), mesh_dim_names=("videos", "context"))
        return Context(mesh["context"].get_group(), self.rank % size, size)


def _flat(settings: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
