"""Counts deleted runs, for the fingerprint of a node whose cached output may be a run."""

from __future__ import annotations

from pathlib import Path

from ..trainers.runs.folder import RunFolder
from ..trainers.runs.registry import list_runs


class Deletions:
    """How many of the runs that were seen have been deleted since; a run that was restored has been deleted too.

    The number only grows: a list of the runs that are there would be an old one again after a deletion.
    """

    def __init__(self) -> None:
        self._seen: set[Path] = set()
        self._count = 0

    def see(self, run: RunFolder) -> None:
        """Remember a run that was started after the last count."""
        self._seen.add(run.path)

    def count(self, root: Path) -> int:
        """Look for the runs that were seen, and at those under `root`."""
        there = {run.path for run in list_runs(root)}
        self._count += len(self._seen - there)
        self._seen = there
        return self._count
