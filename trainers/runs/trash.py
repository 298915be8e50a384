"""Deleted runs: kept in the folder `.trash` beside the others, to be restored, until they expire."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..files import remove
from .devices import hold_runs
from .folder import RunFolder, is_run
from .registry import refresh

FOLDER = ".trash"
KEPT_DAYS = 30.0
DAY = 86_400.0
ENTRY = re.compile(r"(?P<deleted>\d{10,12})-(?P<id>[a-z0-9-]{1,100})")


@dataclass(frozen=True)
class DeletedRun:
    """A run in the trash: its id, when it was deleted (seconds since the epoch), and its folder there."""

    id: str
    deleted: float
    path: Path


def deleted_runs(root: str | Path) -> list[DeletedRun]:
    """The runs in the trash of `root`, those deleted first at the beginning."""
    trash = Path(root) / FOLDER
    found = ((p, ENTRY.fullmatch(p.name)) for p in (trash.iterdir() if trash.is_dir() else ()))
    return sorted((DeletedRun(m["id"], float(m["deleted"]), p) for p, m in found if m), key=lambda run: run.deleted)


def delete(run: RunFolder) -> None:
    """Move the run to the trash beside it; runs that were deleted more than 30 days ago are removed for good.

    LoRAs that it has published stay where they are. Raises UserError for a run that trains or waits.
    """
    root = run.path.parent
    with hold_runs(root):
        status = refresh(run)
        if status.active:
            raise UserError(f"run {run.id} is {status.state} and cannot be deleted; stop it first")
        _expire(root, KEPT_DAYS)
        (root / FOLDER).mkdir(exist_ok=True)
        run.path.rename(root / FOLDER / f"{int(time.time())}-{run.id}")


def restore(root: str | Path, text: str) -> RunFolder:
    """Bring a deleted run back: by its id, an unambiguous beginning of one, or `latest`. Raises UserError."""
    root = Path(root)
    if not text.strip():
        raise UserError("the run's id is empty; give an id, the beginning of one, or `latest`")
    with hold_runs(root):
        deleted = deleted_runs(root)
        if not deleted:
            raise UserError(f"no run was deleted in {root.absolute()}, or the trash was emptied")
        exact = [run for run in deleted if run.id == text] or [run for run in deleted if run.id.startswith(text)]
        found = deleted[-1:] if text == "latest" else exact
        if len(found) != 1:
            raise UserError(
                f"`{text}` is {'no deleted run' if not found else 'not the id of one deleted run'}; there are "
                f"{', '.join(run.id for run in deleted[-5:])}"
            )
        target = root / found[0].id
        if is_run(target):
            raise UserError(f"there is a run {found[0].id} already; move {target} away first")
        found[0].path.rename(target)
        return RunFolder(target)


def empty(root: str | Path, days: float = 0.0) -> list[str]:
    """Remove for good what was deleted at least so many days ago; returns the ids."""
    with hold_runs(root):
        return _expire(root, days)


def _expire(root: str | Path, days: float) -> list[str]:
    expired = [run for run in deleted_runs(root) if time.time() - run.deleted >= days * DAY]
    for run in expired:
        remove(run.path)
    return [run.id for run in expired]
