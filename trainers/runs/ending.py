"""How the training of a run ends in each of its processes: finished, stopped or failed, and its status then."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import Stopped, UserError
from .folder import RunFolder
from .interrupt import Interrupt
from .status import waiting_ended

if TYPE_CHECKING:
    from ..ranks import Ranks


class Ending:
    """The end of a run's training in one process; `state` is `finished`, or `stopped` when the user asked for it."""

    def __init__(self, run: RunFolder, ranks: Ranks) -> None:
        self.run, self.ranks, self.state = run, ranks, "finished"
        self._at_once = False
        self._interrupt = Interrupt(run)

    @property
    def check(self) -> Callable[[], None]:
        """To be called before every step. Raises Stopped when the run was asked to stop."""
        return self._interrupt.check

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """The block is the training: the run is `starting`. A stop ends the block; an error leaves the run `failed`."""
        main = self.ranks.is_main
        try:
            with self._interrupt.handled():
                if main:
                    self.run.set_status(state="starting", message="loading models", last_error="")
                yield
        except (KeyboardInterrupt, Stopped) as end:
            self.state, self._at_once = "stopped", isinstance(end, KeyboardInterrupt)
        except BaseException as error:
            # What has failed before is the cause, as a process that is missing. Writing the status may fail too (a full
            # disk): the first error is the one to raise.
            if main and (status := self.run.status()).state != "failed":
                with contextlib.suppress(OSError, UserError):
                    self.run.set_status(
                        state="failed", last_error=str(error) or type(error).__name__, **waiting_ended(status)
                    )
            raise

    def write(self, **fields: Any) -> None:
        """After the block: the status of a run that has finished or was stopped, with these fields.

        Raises KeyboardInterrupt in one of several processes that was ended at once.
        """
        if self.ranks.is_main:
            self.run.take("stop")
            self.run.set_status(state=self.state, eta_seconds=None, **fields)
        if self._at_once and self.ranks.count > 1:
            raise KeyboardInterrupt  # this process alone: the others must not wait for it
