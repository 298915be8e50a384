"""What a list of runs shows of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .folder import RunFolder
from .history import history
from .progress import ROLLOUT_SHARE
from .registry import refresh
from .status import RunStatus
from .summary import processes, summary

STATUS = (
    "state",
    "active",
    "place",
    "iteration",
    "iterations",
    "phase",
    "phase_done",
    "eta_seconds",
    "gpus",
    "updated",
)
CLIPS_SHOWN = 2
UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What reading the files of a damaged run may raise."""

_kept: dict[Path, tuple[tuple, dict[str, Any]]] = {}


def card(run: RunFolder) -> dict[str, Any]:
    """State, progress, measured gains and newest clips of the run, ready for JSON.

    `kind`: what it trains, `policy` or `reward`; `processes`: those of a run of several, and when each last gave a sign
    of life; `saved`: the name of its newest LoRA; `resumes_from`: the iteration of its newest checkpoint; `done`: the
    fraction of the run that is done, None where its length is not known; `clips`: the newest iteration with clips and
    the numbers of the first of them; the others are those of its status and of `history`. A run that cannot be read has
    the state `damaged`: it must not hide the others in a list.
    """
    try:
        status, newest, checkpoints = refresh(run), run.newest(), run.checkpoints()
        found = {name: getattr(status, name) for name in STATUS} | {
            "id": run.id,
            "kind": run.kind,
            "title": run.title,
            "text": summary(run),
            "message": status.message,
            "error": status.last_error,
            "processes": processes(run) if status.active else "",
            "done": _done(status),
            "saved": newest.path.name if newest else "",
            "resumes_from": int(checkpoints[-1].name) if checkpoints else None,
            "clips": newest_clip_numbers(run),
        }
        return found | history(run)
    except UNREADABLE as error:
        text = f"{run.id}: damaged, it cannot be read ({error})"
        known = {
            "id": run.id,
            "kind": "policy",
            "title": "",
            "text": text,
            "error": str(error),
            "message": "",
            "saved": "",
            "processes": "",
        }
        known |= {"active": False, "state": "damaged", "iteration": 0, "gpus": [], "spark": []}
        known |= {"measured": -1, "size": 0}
        missing = (*STATUS, "resumes_from", "done", "clips", "reward", "judge", "best")
        return dict.fromkeys(missing) | known


def cards(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """The `card` of each run. That of a run without a process is made again only when its files have changed: a list of
    a thousand old runs took seconds."""
    global _kept
    found, kept = [], {}
    for run in runs:
        sign, known = changes_with(run), _kept.get(run.path)
        shown = known[1] if known and known[0] == sign else card(run)
        found.append(shown)
        if not shown["active"]:
            kept[run.path] = sign, shown
    _kept = kept
    return found


def changes_with(run: RunFolder) -> tuple:
    """Equal as long as `card` is: times of the files that it is made of, and what only the process shows."""
    try:
        status = refresh(run)
        parts = ("status.json", "metrics.jsonl", "title.txt", "exports", "checkpoints", "samples", "control")
        times = []
        for part in parts:
            path = run.path / part
            times.append(path.stat().st_mtime_ns if path.exists() else None)
        return status.state, status.message, *times
    except UNREADABLE as error:
        return ("damaged", str(error))


def newest_clip_numbers(run: RunFolder) -> dict[str, Any] | None:
    """The newest iteration that has clips, and the numbers of the first ones."""
    names = sorted((p.name for p in run.samples_folder.glob("[0-9]*") if p.name.isdecimal()), reverse=True)
    newest: dict[str, Any] | None = None
    for name in names:
        numbers = sorted(run.clip_files(int(name)))[:CLIPS_SHOWN]
        if numbers and (newest is None or len(numbers) > len(newest["numbers"])):
            # Of the newest iteration some may still be unwritten: then the one before is shown.
            newest = {"iteration": int(name), "numbers": numbers}
        if newest and len(newest["numbers"]) == CLIPS_SHOWN:
            break
    return newest


def _done(status: RunStatus) -> float | None:
    """The fraction of the run, the part of the iteration in flight included."""
    if not status.iterations:
        return None
    within = {
        "rollouts": ROLLOUT_SHARE * status.phase_done,
        "update": ROLLOUT_SHARE + (1 - ROLLOUT_SHARE) * status.phase_done,
    }
    part = within.get(status.phase, 0.0) if status.active else 0.0
    return min(1.0, (status.iteration + part) / status.iterations)
