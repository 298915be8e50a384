"""Pairs of a run's own clips: the same held-out item at two iterations, for people to compare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..pictures.reading import Picture
from .folder import RunFolder
from .inputs import run_inputs


@dataclass(frozen=True)
class ClipPair:
    """Two clips of one item, its reference images and prompt; `kind` names the two iterations."""

    clips: tuple[Path, Path]
    references: tuple[Picture, ...]
    prompt: str
    kind: str


def clip_pairs(run: RunFolder, first: int | None = None, second: int | None = None) -> Iterator[ClipPair]:
    """The clips of iteration `first` (default: the earliest, of the base policy) against those of `second` (default:
    the newest). Raises UserError when the run has no clips of two iterations, or none of the named ones.
    """
    found = {int(clips[0].parent.name): clips for clips in run.clips() if clips[0].parent.name.isdigit()}
    if len(found) < 2:
        raise UserError(
            f"run {run.id} has clips of {len(found)} iteration{'s' * (len(found) != 1)}, and a comparison needs two; "
            "wait for its next evaluation"
        )
    chosen = min(found) if first is None else first, max(found) if second is None else second
    for iteration in chosen:
        if iteration not in found:
            raise UserError(
                f"run {run.id} has no clips of iteration {iteration}; it has {', '.join(map(str, sorted(found)))}"
            )
    items = run_inputs(run.config()).held_out.items
    before, after = ({clip.name: clip for clip in found[iteration]} for iteration in chosen)
    for name in sorted(before.keys() & after.keys()):
        item = items[int(name.partition("-")[0])]
        kind = f"iteration {chosen[0]} / {chosen[1]}"
        yield ClipPair((before[name], after[name]), tuple(item.references), item.prompt, kind)
