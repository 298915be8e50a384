"""The processes of one run of GRPO: groups that compute a video together, passes in step, trackers, rewards beside."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_tensorboard_available, is_wandb_available

from .. import ranks
from ..config import RewardConfig
from ..errors import UserError
from .lockstep import Lockstep

if TYPE_CHECKING:
    from ..policies.context import Context

TRACKERS = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}


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


class Ranks(ranks.Ranks):
    """The processes of one run, seen from one of them.

    With `parallel.context` above 1 neighbouring processes form groups: `context` is this process's, else None. The
    processes of a group have the same slice of all work, and the same results. `lockstep`: set where the policy's
    passes can only be made by all processes together; work may then make such passes, and communicates in no other way.
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
        super().__init__(timeout_minutes, log_with=list(trackers) or None, project_dir=folder)
        self.lockstep: Lockstep | None = None
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
    def groups(self) -> int:
        """Of processes that work on different videos."""
        return self.count // (self.context.size if self.context else 1)

    @property
    def group(self) -> int:
        """The number of this process's group."""
        return self.rank * self.groups // self.count

    def slice(self, costs: Sequence[int]) -> list[int]:
        """The part of this process's group of what costs so much each (see `rank_slice`)."""
        return ranks.rank_slice(costs, self.group, self.groups)

    def gather_results(self, work: Callable[[], Sequence[ranks.T]]) -> list[ranks.T]:
        lockstep = self.lockstep
        if lockstep is None:
            return super().gather_results(work)

        def in_step() -> Sequence[ranks.T]:
            lockstep.begin()
            values = list(work())
            lockstep.finish()
            return values

        return super().gather_results(in_step)

    def _can_meet(self) -> bool:
        return self.lockstep is None or self.lockstep.leave()

    def _counts(self) -> bool:
        return self.context is None or self.context.rank == 0

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
