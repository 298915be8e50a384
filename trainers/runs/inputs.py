"""What a run's configuration names: its prompt sets, and the judge that measures its held-out videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..config import TrainConfig
from ..errors import UserError
from ..prompts import PromptItem, PromptSet, load_prompt_set

if TYPE_CHECKING:
    from torch import Tensor

TINYWORLD = "tinyworld"
TINYWORLD_ITEMS = (64, 512)


@dataclass(frozen=True)
class RunInputs:
    """The training and the held-out items of a run."""

    items: PromptSet
    held_out: PromptSet

    @property
    def judge(self):
        """TinyWorld's oracle where all held-out items are TinyWorld's, else None."""
        return tinyworld_judge if all("scene" in item.extra for item in self.held_out) else None


def run_inputs(config: TrainConfig) -> RunInputs:
    """The inputs that the configuration names; see `resolve_prompts`."""
    return RunInputs(*resolve_prompts(config))


def with_negative(prompts: PromptSet, negative: str) -> PromptSet:
    """The set with `negative` in every item that has no negative prompt of its own."""
    items = (item if item.negative else replace(item, negative=negative) for item in prompts)
    return PromptSet(tuple(items), prompts.source) if negative else prompts


def resolve_prompts(config: TrainConfig) -> tuple[PromptSet, PromptSet]:
    """The training and the held-out items of a run.

    Raises UserError when a file has problems, when the training set is smaller than the groups of one update, when nothing
    is held out, or when a held-out item is also trained on.
    """
    if config.prompts == TINYWORLD:
        if config.held_out:
            raise UserError(
                "held_out takes rows off a CSV; TinyWorld brings its own held-out items: leave held_out at 0"
            )
        train = _tinyworld("train", _tinyworld_items(config.rollout.groups * config.iterations))
    else:
        train = load_prompt_set(config.prompts)
    if config.evaluation_prompts and config.held_out:
        raise UserError("evaluation_prompts and held_out both name the held-out items; set only one of them")
    own_held_out = config.evaluation_prompts is None and config.prompts == TINYWORLD
    if own_held_out or config.evaluation_prompts == TINYWORLD:
        held_out = _tinyworld("held_out", config.evaluation.items)
    elif config.evaluation_prompts:
        held_out = load_prompt_set(config.evaluation_prompts)
    elif config.held_out:
        if config.held_out >= len(train):
            raise UserError(
                f"held_out {config.held_out} leaves nothing to train on: {train.source} has {len(train)} rows"
            )
        kept = len(train) - config.held_out
        train, held_out = (PromptSet(part, train.source) for part in (train.items[:kept], train.items[kept:]))
    else:
        raise UserError(
            "nothing is held out to measure progress on; set evaluation_prompts to a second CSV, or held_out to a "
            f"number of rows taken off the end of {train.source}"
        )
    _refuse_overlap(train, held_out)
    needed = config.rollout.groups_per_update
    if len(train) < needed:
        raise UserError(
            f"{train.source} has {len(train)} rows to train on but an update needs {needed} groups, each of another "
            f"row; add {needed - len(train)} rows, or set rollout.groups_per_update to {len(train)} or less (below 16 "
            "the method hardly moves)"
        )
    return with_negative(train, config.negative_prompt), with_negative(held_out, config.negative_prompt)


def tinyworld_judge(videos: Tensor, items: Sequence[PromptItem]) -> dict[str, list[float]]:
    """The oracle's identity and text alignment of videos of TinyWorld's items."""
    from ..tinyworld.oracle import measure
    from ..tinyworld.prompts import scenes_of

    found = measure(videos, scenes_of(items))
    return {"identity": found.identity.tolist(), "alignment": found.alignment.tolist()}


def _refuse_overlap(train: PromptSet, held_out: PromptSet) -> None:
    known = {item.content(): item.id for item in train}
    for item in held_out:
        trained = known.get(item.content())
        if trained is not None:
            raise UserError(
                f"held-out item `{item.id}` of {held_out.source} is also trained on (`{trained}` of {train.source}), "
                "so it would measure memory; take it out of one of the two"
            )


def _tinyworld_items(groups: int) -> int:
    """A power of two: rendering portraits takes time, so no more items than a run of so many groups uses."""
    least, most = TINYWORLD_ITEMS
    return min(most, max(least, 1 << (groups - 1).bit_length()))


def _tinyworld(split: str, count: int) -> PromptSet:
    from ..tinyworld.prompts import tiny_prompt_set

    return PromptSet(tuple(tiny_prompt_set(split, count)), TINYWORLD)
