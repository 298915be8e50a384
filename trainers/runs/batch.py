"""Many runs side by side on one device: as many at a time as asked, resumable, none starving another."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ..config import TrainConfig
from ..errors import UserError
from .folder import RunFolder
from .launcher import cores, start, stop
from .registry import refresh
from .starting import find_same

POLL_SECONDS = 1.0
REPORT_SECONDS = 20.0


class RunBatch:
    """Trains one run per configuration under `root`, `jobs` at a time, each with its share of the CPU cores.

    A run of the same name and settings that is there already is taken over: a finished one as it is, another is
    resumed.
    """

    def __init__(self, root: Path, configs: Mapping[str, TrainConfig], jobs: int, processes: int = 1) -> None:
        """`processes`: of each run, one on each GPU."""
        self.root, self.configs, self.jobs, self.processes = root, configs, jobs, processes
        self.runs: dict[str, RunFolder] = {}

    def finish(self, report: Callable[[str], None]) -> Iterator[tuple[str, RunFolder]]:
        """Train them all; yields each as soon as it has finished. `report` gets a line now and then.

        Raises UserError when a run fails. An interruption, or closing the generator, stops the runs that are going.
        """
        waiting, active = list(self.configs), dict[str, subprocess.Popen]()
        started, reported = time.monotonic(), 0.0
        try:
            while waiting or active:
                ended = [name for name, child in active.items() if child.poll() is not None]
                for name in ended:
                    del active[name]
                    self._require_finished(self.runs[name])
                while waiting and len(active) < self.jobs:
                    name = waiting.pop(0)
                    child = self._start(name)
                    if child is None:
                        ended.append(name)
                    else:
                        active[name] = child
                # The caller may take its time with them: the next runs are going already.
                yield from ((name, self.runs[name]) for name in ended)
                if active and time.monotonic() - reported > REPORT_SECONDS:
                    reported = time.monotonic()
                    states = (f"{name} {self.runs[name].status().iteration}" for name in active)
                    report(f"{reported - started:5.0f} s, {len(waiting)} waiting, iteration of {', '.join(states)}")
                time.sleep(POLL_SECONDS if active else 0)
        finally:
            for name in active:
                self.runs[name].request("stop")
            for name in active:
                stop(self.runs[name])

    def _start(self, name: str) -> subprocess.Popen | None:
        """The run's process; None for a run that has finished before."""
        config = self.configs[name]
        run = find_same(self.root, config, name)
        resume = run is not None
        self.runs[name] = run = run or RunFolder.create(self.root, config, name)
        if refresh(run).state == "finished":
            return None
        threads = max(1, cores() // (self.jobs * self.processes))
        return start(run, resume, self.processes, share_devices=True, threads=threads)

    @staticmethod
    def _require_finished(run: RunFolder) -> None:
        status = refresh(run)
        if status.state != "finished":
            raise UserError(
                f"run {run.id} did not finish ({status.state}: {status.last_error}); see {run.log_file}\n"
                f"{run.log_tail(5)}"
            )
