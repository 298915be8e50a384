"""Every process of a run shows the others that it lives; who misses one ends the run."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed import DistError, TCPStore

from ..processes import host
from ..runs.heartbeat import BEAT_SECONDS

LOST_SECONDS = 45.0
"""How old the last sign of a process is at most. Processes of one machine are watched by their launcher as well."""


class RankWatch:
    """A thread that gives a sign of life every `every` seconds and looks for those of the others.

    It works without the interpreter's main thread, which may wait for a dead process in a collective operation. In the
    main process it watches all, in the others the main one. `lost` is called in the thread, once, with what is missing.
    """

    def __init__(
        self,
        rank: int,
        count: int,
        broadcast: Callable[[Any], Any],
        lost: Callable[[str], None],
        every: float = BEAT_SECONDS,
        patience: float = LOST_SECONDS,
    ) -> None:
        """`broadcast`: returns the main process's value in all of them; every process must make its watch."""
        self.rank, self.count, self.every, self.patience, self._lost = rank, count, every, patience, lost
        address = os.environ["MASTER_ADDR"]
        timeout = timedelta(seconds=patience)
        # A store of its own: that of the process group is busy while the group waits.
        own = TCPStore(address, 0, None, True, timeout, wait_for_workers=False) if rank == 0 else None
        port = broadcast(own.port if own else None)
        self._store = own or TCPStore(address, port, None, False, timeout, wait_for_workers=False)
        self._seen = {other: ("", time.monotonic()) for other in range(count)}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def ages(self) -> list[dict[str, Any]]:
        """Of every process its `rank`, `host`, `pid`, and the `seconds` since its last sign; in the main process."""
        now, found = time.monotonic(), []
        for rank, (sign, since) in sorted(self._seen.copy().items()):
            _, place, pid = json.loads(sign) if sign else (0, "", 0)
            found.append({"rank": rank, "host": place, "pid": pid, "seconds": now - since})
        return found

    def close(self) -> None:
        """End the thread; nobody is missed any more."""
        self._ended.set()
        self._thread.join(self.every)

    def _watch(self) -> None:
        number, last = 0, time.monotonic()
        while not self._ended.is_set():
            number, now = number + 1, time.monotonic()
            if now - last > 3 * self.every:  # this process was suspended: the others may have been, too
                self._seen = {other: (sign, now) for other, (sign, _) in self._seen.items()}
            last = now
            try:
                self._store.set(str(self.rank), json.dumps([number, host(), os.getpid()]))
                for other in range(self.count) if self.rank == 0 else ():
                    self._look(other, now)
            except (DistError, RuntimeError) as error:
                if not self._ended.is_set():
                    self._lost(f"the main process cannot be reached ({str(error).splitlines()[0]})")
                return
            missing = [other for other in self._seen if now - self._seen[other][1] > self.patience]
            if self.rank == 0 and missing:
                self._lost(self._missed(missing[0], now))
                return
            self._ended.wait(self.every)

    def _look(self, other: int, now: float) -> None:
        if self._store.check([str(other)]):
            sign = self._store.get(str(other)).decode()
            if sign != self._seen[other][0]:
                self._seen[other] = (sign, now)

    def _missed(self, rank: int, now: float) -> str:
        sign, since = self._seen[rank]
        place = f" on {json.loads(sign)[1]}" if sign else ""
        return (
            f"process {rank} of {self.count}, counted from 0,{place} has given no sign of life for {now - since:.0f} s"
        )
