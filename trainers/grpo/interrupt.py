"""How a run is asked to stop: by Ctrl-C, by SIGTERM, or by a request in its folder."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import UserError
from ..runs.folder import RunFolder
from ..runs.heartbeat import at_work


class Stopped(Exception):
    """The user asked the run to stop; it resumes from its last checkpoint."""


class Interrupt:
    """Ctrl-C and SIGTERM are noted instead of ending the process in the middle of a write; a second Ctrl-C ends it.

    In a run of several processes SIGTERM comes from the launcher, when another process has died: it is an error.
    """

    def __init__(self, run: RunFolder, processes: int = 1) -> None:
        self.run, self.processes = run, processes
        self._noted = threading.Event()

    def check(self) -> None:
        """Note that the run comes to its next step. Raises Stopped when it was asked to stop."""
        at_work()
        if self._noted.is_set() or self.run.requested("stop"):
            raise Stopped

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Within the block the signals are noted; only the main thread can do that."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if number == signal.SIGTERM and self.processes > 1:
            raise UserError(
                "another process of this run has ended, see the log; resume continues from the last checkpoint"
            )
        if number == signal.SIGINT and self._noted.is_set():
            raise KeyboardInterrupt
        self._noted.set()
