"""What the processes of one run agree on: who does what, and whether all got through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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

from ..errors import UserError
from .interrupt import Stopped
from .lockstep import Lockstep

if TYPE_CHECKING:
    from ..policies.context import Context

T = TypeVar("T")
TRACKERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}


def rank_slice(count: int, rank: int, ranks: int) -> range:
    """The contiguous slice of `count` that process `rank` works on; slices differ by at most one."""
    return range(-(-count * rank // ranks), -(-count * (rank + 1) // ranks))


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
    processes of a group have the same slice of all work, and the same results.
    `lockstep`: set where the policy's passes can only be made by all processes together.
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

        Raises UserError when the package of a tracker is not installed, or the processes cannot be divided so.
        """
        require_trackers(trackers)
        self.lockstep: Lockstep | None = None
        # accelerate joins processes on CPUs only when it is asked for the CPU.
        on_cpus = torch.distributed.is_torchelastic_launched() and not torch.cuda.is_available()
        self.accelerator = Accelerator(
            cpu=on_cpus,
            log_with=list(trackers) or None,
            project_dir=folder,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes))],
        )
        require_context(context, self.count)
        self.context = self._join_group(context) if context > 1 else None

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
        return self.accelerator.process_index * self.groups // self.count

    def slice(self, count: int) -> range:
        """This process's part of `count`."""
        return rank_slice(count, self.group, self.groups)

    def gather(self, values: Sequence[T]) -> list[T]:
        """The values of all groups' first processes, in order of their ranks."""
        return gather_object(list(values) if self.context is None or self.context.rank == 0 else [])

    def least(self, number: int) -> int:
        """The least of all processes' numbers."""
        return min(gather_object([number]))

    def broadcast(self, value: T) -> T:
        """The main process's value."""
        return broadcast_object_list([value])[0]

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
        """Run this process's own part of something; what ends it in one process ends it in all, so none waits for ever.

        `work` must not communicate with other processes, but for the policy's passes under `lockstep`. Raises what
        `work` raised; in the other processes Stopped, or UserError with the message of the first process that failed.
        """
        lockstep = self.lockstep
        try:
            if lockstep is not None:
                lockstep.begin()
            result = work()
            if lockstep is not None:
                lockstep.finish()
        except Exception as error:
            if lockstep is not None and not lockstep.leave():
                # The others wait in a pass, until the launcher ends them.
                raise
            outcomes = self._outcomes((isinstance(error, Stopped), str(error) or type(error).__name__))
            if isinstance(error, Stopped) and not outcomes[0][0]:
                raise UserError(outcomes[0][1]) from error
            raise
        for stopped, message in self._outcomes(None):
            raise Stopped if stopped else UserError(message)
        return result

    def _outcomes(self, own: tuple[bool, str] | None) -> list[tuple[bool, Any]]:
        """(stopped, message) of all processes that did not get through, errors before stops."""
        return sorted(outcome for outcome in gather_object([own]) if outcome)

    def _join_group(self, size: int) -> Context:
        # It imports diffusers, which a command that only counts processes has no use for.
        from torch.distributed.device_mesh import init_device_mesh

        from ..policies.context import Context

        mesh = init_device_mesh(self.device.type, (self.count // size, size), mesh_dim_names=("videos", "context"))
        return Context(mesh["context"].get_group(), self.accelerator.process_index % size, size)


def _flat(settings: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
