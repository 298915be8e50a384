"""How a run is asked to stop: by Ctrl-C, by SIGTERM or SIGHUP, or by a request in its folder."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import Stopped, UserError
from .folder import RunFolder
from .heartbeat import at_work
from .process_group import ANOTHER, ANOTHER_ENDED


class Interrupt:
    """Ctrl-C, SIGTERM, and SIGHUP of a closed terminal are noted instead of ending the process in the middle of a
    write; a second Ctrl-C ends it.

    In a run of several processes another signal shows that one of them has died: it is an error.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
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
        numbers = {signal.SIGINT, signal.SIGTERM, ANOTHER_ENDED}
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup's stays
            numbers.add(signal.SIGHUP)
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        if number == ANOTHER_ENDED != signal.SIGTERM:
            raise UserError(f"{ANOTHER}; resume continues from the last checkpoint")
        if number == signal.SIGINT and self._noted.is_set():
            raise KeyboardInterrupt
        self._noted.set()
