"""What a run's configuration names: its prompt sets, and the judge that measures its held-out videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..config import TrainConfig
from ..errors import UserError
from ..prompts import PromptItem, PromptSet, load_prompt_set

if TYPE_CHECKING:
    from torch import Tensor

TINYWORLD = "tinyworld"
TINYWORLD_ITEMS = (64, 512)
TINYWORLD_SIZE = (80, 48)  # width and height for which its models were trained and its oracle measures


@dataclass(frozen=True)
class RunInputs:
    """The training and the held-out items of a run, and the judge of the held-out videos, if there is one."""

    items: PromptSet
    held_out: PromptSet
    judge: Callable[[Tensor, Sequence[PromptItem]], dict[str, list]] | None = None


def run_inputs(config: TrainConfig) -> RunInputs:
    """The inputs that the configuration names (see `resolve_prompts`).

    TinyWorld's oracle is the judge of TinyWorld's items in their own size; the face report is that of photographs.
    """
    items, held_out = resolve_prompts(config)
    size = config.evaluation.video or config.video
    if not any("scene" in item.extra for item in held_out):
        from ..faces.judge import face_judge
        from ..faces.users import load_recogniser

        recogniser = load_recogniser(config.faces.detector, config.faces.embedder)
        judge = face_judge(held_out[: config.evaluation.items], config.reward.fps, recogniser)
        if judge is None and config.rewards.faces.weight:
            raise UserError(
                "rewards.faces trains on the face report, but nothing can judge: a held-out reference image shows no "
                "face; give reference images that do, or set its weight to 0"
            )
        return RunInputs(items, held_out, judge)
    measurable = (size.width, size.height) == TINYWORLD_SIZE and all("scene" in item.extra for item in held_out)
    return RunInputs(items, held_out, tinyworld_judge if measurable else None)


def check_prompts(config: TrainConfig) -> None:
    """Raises UserError as `resolve_prompts`, in less time: TinyWorld's items are not rendered for it."""
    files = [path for path in (config.prompts, config.evaluation_prompts) if path not in (None, TINYWORLD)]
    if config.prompts in files and config.evaluation_prompts != TINYWORLD:
        resolve_prompts(config)
        return
    _check_settings(config)
    for path in files:
        load_prompt_set(path)
    if config.prompts == TINYWORLD:
        _require_enough(_tinyworld_items(config), TINYWORLD, config)


def with_negative(prompts: PromptSet, negative: str) -> PromptSet:
    """The set with `negative` in every item that has no negative prompt of its own."""
    items = (item if item.negative else replace(item, negative=negative) for item in prompts)
    return PromptSet(tuple(items), prompts.source) if negative else prompts


def resolve_prompts(config: TrainConfig) -> tuple[PromptSet, PromptSet]:
    """The training and the held-out items of a run.

    Raises UserError when a file has problems, when the training set is smaller than the groups of one update, when
    nothing is held out, when a held-out item is also trained on, or when videos of TinyWorld's items would be larger
    than its own.
    """
    _check_settings(config)
    if config.prompts == TINYWORLD:
        train = _tinyworld("train", _tinyworld_items(config))
    else:
        train = load_prompt_set(config.prompts)
    if (config.evaluation_prompts or config.prompts) == TINYWORLD:
        held_out = _tinyworld("held_out", config.evaluation.items)
    elif config.evaluation_prompts:
        held_out = load_prompt_set(config.evaluation_prompts)
    elif config.held_out:
        if config.held_out >= len(train):
            raise UserError(
                f"--held-out {config.held_out} leaves nothing to train on: {train.source} has {len(train)} rows"
            )
        kept = len(train) - config.held_out
        train, held_out = (PromptSet(part, train.source) for part in (train.items[:kept], train.items[kept:]))
    else:
        raise UserError(
            "nothing is held out to measure progress on; name a second CSV with --evaluation-prompts, or give with "
            f"--held-out the number of rows to take off the end of {train.source}"
        )
    _refuse_overlap(train, held_out)
    _require_enough(len(train), train.source, config)
    return with_negative(train, config.negative_prompt), with_negative(held_out, config.negative_prompt)


def held_out_items(config: TrainConfig, most: int) -> Sequence[PromptItem]:
    """The first `most` of the held-out items, to be shown: nothing is checked, and pictures are not decoded.

    Raises UserError when a CSV cannot be read.
    """
    if (config.evaluation_prompts or config.prompts) == TINYWORLD:
        return _tinyworld("held_out", min(most, config.evaluation.items)).items
    items = load_prompt_set(config.evaluation_prompts or config.prompts, decode=False).items
    held_out = items if config.evaluation_prompts else items[max(0, len(items) - (config.held_out or 0)) :]
    return held_out[: min(most, config.evaluation.items)]


def tinyworld_judge(videos: Tensor, items: Sequence[PromptItem]) -> dict[str, list]:
    """The oracle's identity, text alignment and picture quality of videos of TinyWorld's items, and `people`: the
    identity of each person."""
    from accelerate import PartialState

    from ..tinyworld.oracle import measure
    from ..tinyworld.prompts import scenes_of

    # On the GPU where there is one: videos come to the CPU when they are decoded.
    scenes = scenes_of(items)
    found = measure(videos.to(PartialState().device), scenes)
    people = [row[:count] for row, count in zip(found.per_person.tolist(), scenes.count.tolist(), strict=True)]
    return {name: getattr(found, name).tolist() for name in ("identity", "alignment", "quality")} | {"people": people}


def _refuse_overlap(train: PromptSet, held_out: PromptSet) -> None:
    known = {item.content(): item.id for item in train}
    for item in held_out:
        trained = known.get(item.content())
        if trained is not None:
            raise UserError(
                f"held-out item `{item.id}` of {held_out.source} is also trained on (`{trained}` of {train.source}), "
                "so it would measure memory; take it out of one of the two"
            )


def _check_settings(config: TrainConfig) -> None:
    if config.prompts == TINYWORLD and config.held_out:
        raise UserError("--held-out takes rows off a CSV; TinyWorld brings its own held-out items: leave it out")
    if config.evaluation_prompts and config.held_out:
        raise UserError("--evaluation-prompts and --held-out both name the held-out items; give only one of them")
    width, height = TINYWORLD_SIZE
    for name, size in (("video", config.video), ("evaluation.video", config.evaluation.video or config.video)):
        if TINYWORLD in (config.prompts, config.evaluation_prompts) and (size.width > width or size.height > height):
            raise UserError(
                f"{name} is {size.width}x{size.height}, but TinyWorld's videos are {width}x{height}; "
                f"set {name}.width={width} and {name}.height={height} (as preset `tiny`), or train on a CSV"
            )


def _require_enough(rows: int, source: str, config: TrainConfig) -> None:
    needed = config.rollout.groups_per_update
    if rows < needed:
        raise UserError(
            f"{source} has {rows} rows to train on but an update needs {needed} groups, each of another "
            f"row; add {needed - rows} rows, or set rollout.groups_per_update to {rows} or less (below 16 "
            "the method hardly moves)"
        )


def _tinyworld_items(config: TrainConfig) -> int:
    """A power of two: rendering portraits takes time, so no more items than the run uses."""
    least, most = TINYWORLD_ITEMS
    groups = config.rollout.groups * config.iterations
    return min(most, max(least, 1 << (groups - 1).bit_length()))


def _tinyworld(split: str, count: int) -> PromptSet:
    from ..tinyworld.prompts import tiny_prompt_set

    return PromptSet(tuple(tiny_prompt_set(split, count)), TINYWORLD)
