"""The processes of one reward training: which pairs are whose, and sums over all. One process without torchrun."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed


class Ranks:
    """This process among those that train together; torch's process group must exist where there are several."""

    def __init__(self) -> None:
        several = distributed.is_available() and distributed.is_initialized()
        self.rank, self.count = (distributed.get_rank(), distributed.get_world_size()) if several else (0, 1)

    @property
    def main(self) -> bool:
        """Whether this is the process that reports and writes."""
        return self.rank == 0

    def slice(self, total: int) -> range:
        """The places of a batch of `total` that this process computes."""
        return range(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes."""
        if self.count > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)

    def of_first(self, value: float, device: torch.device) -> float:
        """The value of the first process: clocks differ, and all must stop at the same step."""
        if self.count == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.broadcast(shared, 0)
        return shared.item()

    def wait(self) -> None:
        """Until all are here: what one has written is there for the others then."""
        if self.count > 1:
            distributed.barrier()
