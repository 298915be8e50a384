"""Downloads in a thread of this process, one list of files at a time, with their progress."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..errors import UserError
from .catalog import Published, Repository
from .fetch import fetch

RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"


@dataclass(frozen=True)
class Progress:
    """`names`: the files of the catalogue; `file`: the one being downloaded, with `done` of `total` bytes (None while
    that is not known); `error`: why it failed."""

    state: str
    names: tuple[str, ...]
    file: str = ""
    done: int = 0
    total: int | None = None
    error: str = ""


class _Stop(Exception):
    """Ends `fetch` between two blocks."""


class BackgroundFetch:
    """`fetch` of several files; what is interrupted is continued by the next start."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def status(self) -> dict | None:
        """The fields of `Progress`; None before the first start."""
        progress = self._progress
        return None if progress is None else asdict(progress)

    def start(self, items: Sequence[Published | Repository], models: Path) -> None:
        """Download the items into ComfyUI's folder `models`. Raises UserError while another list is downloaded."""
        with self._lock:
            if self._progress is not None and self._progress.state == RUNNING:
                raise UserError(f"{', '.join(self._progress.names)} is being downloaded; wait for it, or stop it")
            self._progress = Progress(RUNNING, tuple(item.name for item in items))
            self._stop = threading.Event()
            # A daemon: ComfyUI can end while a server does not answer.
            threading.Thread(target=self._run, args=(items, models, self._stop), daemon=True).start()

    def stop(self) -> None:
        """End the download at its next block; what was received is kept."""
        self._stop.set()

    def _run(self, items: Sequence[Published | Repository], models: Path, stop: threading.Event) -> None:
        def report(name: str, done: int, total: int | None) -> None:
            if stop.is_set():
                raise _Stop
            self._progress = replace(self._progress, file=name, done=done, total=total)

        end = {"state": FAILED, "error": "an unexpected error, which is in the server's log"}
        try:
            for item in items:
                report(item.name, 0, None)
                fetch(item, models, report)
            end = {"state": FINISHED}
        except _Stop:
            end = {"state": STOPPED}
        except (UserError, OSError) as error:
            end["error"] = str(error)
        finally:
            self._progress = replace(self._progress, **end)
