"""A run's held-out items with their clips and scores, iteration by iteration."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .folder import RunFolder
from .history import history
from .inputs import held_out_items

if TYPE_CHECKING:
    from ..prompts import PromptItem

SCORES = ("rewards", "identity")
MOST_ITEMS = 64
"""Held-out items whose prompts and references are shown."""


def gallery(run: RunFolder) -> dict[str, Any]:
    """`iterations`: those that have clips, with the numbers of the clips; `items`: id, prompt and count of references
    of the held-out items, by number; `base`: their scores by the base policy; `best`: the best evaluated iteration;
    `start`: what iteration 0 is; `problem`: why the items cannot be shown, else empty.
    """
    items, problem = [], ""
    try:
        items = shown_items(run)
        start = "start LoRA" if run.config().start_lora else "base policy"
    except (UserError, OSError) as error:
        start, problem = "iteration 0", f"the held-out items cannot be shown: {error}"
    names = sorted(int(p.name) for p in run.samples_folder.glob("[0-9]*") if p.name.isdecimal())
    found = ({"iteration": iteration, "numbers": sorted(run.clip_files(iteration))} for iteration in names)
    return {
        "iterations": [entry for entry in found if entry["numbers"]],
        "items": [{"id": i.id, "prompt": i.prompt, "references": len(i.references)} for i in items],
        "base": _scores(run.read_measurement("base", dict)),
        "best": history(run)["best"],
        "start": start,
        "problem": problem,
    }


def iteration_scores(run: RunFolder, iteration: int) -> dict[str, Any]:
    """The scores of every held-out item at an iteration: lists by `ids`; empty where it was not evaluated."""
    return _scores(run.read_measurement(iteration, dict))


def clip_file(run: RunFolder, iteration: int, number: int) -> Path:
    """Raises UserError when there is none."""
    path = run.clip_files(iteration).get(number)
    if path is None:
        raise UserError(f"run {run.id} has no clip {number} of iteration {iteration}")
    return path


def reference_picture(run: RunFolder, number: int, place: int) -> object:
    """The reference image `place` of held-out item `number`: a file, or pixels. Raises UserError when there is none."""
    items = shown_items(run)
    if number >= len(items) or place >= len(items[number].references):
        raise UserError(f"run {run.id} has no reference image {place} of held-out item {number}")
    return items[number].references[place]


def shown_items(run: RunFolder) -> Sequence[PromptItem]:
    """The first held-out items of the run. Raises UserError when its configuration or its CSV cannot be read."""
    return _items(run.path, (run.path / "config.yaml").stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _items(path: Path, _changed: int) -> Sequence[PromptItem]:
    return held_out_items(RunFolder(path).config(), MOST_ITEMS)


def _scores(measurement: dict[str, Any] | None) -> dict[str, Any]:
    """The lists of a measurement that can be used: one read from a file may hold anything."""
    ids = (measurement or {}).get("ids")
    if not isinstance(ids, list) or not all(isinstance(name, str) for name in ids):
        return {}
    found: dict[str, Any] = {"ids": ids}
    for name in SCORES:
        values = measurement.get(name)
        if isinstance(values, list) and len(values) == len(ids):
            found[name] = [_number(value) for value in values]
    people = measurement.get("people")
    if isinstance(people, list) and len(people) == len(ids) and all(isinstance(values, list) for values in people):
        found["people"] = [[_number(value) for value in values] for values in people]
    return found


def _number(value: Any) -> float | None:
    return value if type(value) in (int, float) else None
