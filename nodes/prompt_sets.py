"""The nodes that load a prompt set, and make one in the graph."""

from __future__ import annotations

from pathlib import Path

import torch
from comfy_api.latest import io, ui

from ..trainers.errors import UserError
from ..trainers.pictures.boards import prompt_board
from ..trainers.pictures.reading import read_pixels
from ..trainers.policies.wan import fit_on_white
from ..trainers.prompts import PromptItem as Item
from ..trainers.prompts import PromptSet as Prompts
from ..trainers.prompts import load_prompt_set
from . import folders
from .pictures import references_input, to_image, to_references
from .types import PromptSet as PromptSetType

CATEGORY = "Identity-GRPO/prompt sets"
BUILT_IN_ITEMS = 64
SHOWN = 8
EMPTY = "the prompt is empty; describe the video"


class PromptSet(io.ComfyNode):
    """A CSV of reference images and prompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOPromptSet",
            display_name="Prompt Set (from a CSV)",
            category=CATEGORY,
            description="Loads rows of reference images and prompts to train or to measure on, shows them, and hands one out for a sampler.",
            search_aliases=["csv", "dataset", "prompts", "references", "training data"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folders.prompt_set_choices(),
                    tooltip="A CSV in ComfyUI's input folder with the columns ref_paths (pictures separated by `;`, relative to the file) and "
                    "prompt, optionally id and negative; or a built-in set.",
                ),
                io.Int.Input(
                    "item",
                    default=1,
                    min=1,
                    max=100000,
                    tooltip="Which row is handed out beside the set, 1 is the first.",
                ),
            ],
            outputs=[
                PromptSetType.Output("prompt_set", tooltip="All rows, for Train."),
                io.Image.Output(
                    "references",
                    tooltip="The pictures of the chosen row, for a sampler; fitted on white if their sizes differ.",
                ),
                io.String.Output("prompt", tooltip="The prompt of the chosen row."),
                io.String.Output("negative", tooltip="Its negative prompt."),
                io.Int.Output("count", tooltip="Number of rows."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, file=None) -> bool | str:
        try:
            if file is not None and file not in folders.BUILT_IN_SETS:
                _load(file)
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file=None, **_) -> str:
        if file is None or file in folders.BUILT_IN_SETS:
            return ""
        paths = [folders.prompt_set_path(file), *(r for item in _load(file) for r in item.references)]
        return repr([(str(p), p.stat().st_mtime_ns, p.stat().st_size) for p in paths])

    @classmethod
    def execute(cls, file: str, item: int) -> io.NodeOutput:
        found = _load(file)
        if not 1 <= item <= len(found):
            raise UserError(f"item {item} is not there: `{file}` has {len(found)} rows; choose 1 to {len(found)}")
        row = found[item - 1]
        shown = ui.PreviewImage(to_image(prompt_board(found.items[:SHOWN], len(found))), cls=cls)
        return io.NodeOutput(found, _one_size(row.references), row.prompt, row.negative, len(found), ui=shown)


class PromptItem(io.ComfyNode):
    """One row of a prompt set, made in the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOPromptItem",
            display_name="Prompt Item",
            category=CATEGORY,
            description="Makes a row of a prompt set from pictures and a prompt; chain several to make a set without a CSV.",
            search_aliases=["add prompt", "dataset row", "prompt list"],
            inputs=[
                references_input("One picture per person, in the order in which the prompt speaks of them."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    tooltip="What happens in the video, with a few words on how each person looks.",
                ),
                io.String.Input(
                    "negative", multiline=True, default="", tooltip="What the video should not show; may stay empty."
                ),
                PromptSetType.Input(
                    "prompt_set", optional=True, tooltip="The rows before this one; without it a new set begins."
                ),
            ],
            outputs=[PromptSetType.Output("prompt_set", tooltip="The set with this row at its end.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, references=None, prompt=None) -> bool | str:
        return EMPTY if prompt is not None and not prompt.strip() else True

    @classmethod
    def execute(cls, references: dict, prompt: str, negative: str, prompt_set: Prompts | None = None) -> io.NodeOutput:
        if not prompt.strip():
            raise UserError(EMPTY)
        before = prompt_set.items if prompt_set is not None else ()
        taken = {item.id for item in before}
        number = next(n for n in range(len(before) + 1, len(before) + len(taken) + 2) if f"item-{n}" not in taken)
        item = Item(f"item-{number}", prompt, to_references(references), negative)
        grown = Prompts((*before, item), "the graph")
        shown = ui.PreviewImage(to_image(prompt_board(grown.items[-SHOWN:], len(grown), "last")), cls=cls)
        return io.NodeOutput(grown, ui=shown)


def _load(choice: str) -> Prompts:
    """The set behind a choice. Raises UserError naming its wrong rows, or a picture outside of ComfyUI's folders."""
    if choice in folders.BUILT_IN_SETS:
        from ..trainers.tinyworld.prompts import tiny_prompt_set

        return Prompts(tuple(tiny_prompt_set(folders.BUILT_IN_SETS[choice], BUILT_IN_ITEMS)), "tinyworld")
    return load_prompt_set(folders.prompt_set_path(choice), _refusal)


def _refusal(picture: Path) -> str | None:
    if folders.may_read(picture):
        return None
    return f"reference image {picture} lies outside of ComfyUI's input and output folders; put it there"


def _one_size(references) -> torch.Tensor:
    """IMAGE batch of the pictures; those of another size than the first are fitted into it on white."""
    pictures = [read_pixels(reference) for reference in references]
    height, width = pictures[0].shape[:2]
    fitted = [
        torch.from_numpy(p).float() / 255
        if p.shape[:2] == (height, width)
        else (fit_on_white(p, height, width).permute(1, 2, 0) + 1) / 2
        for p in pictures
    ]
    return torch.stack(fitted)


NODES = [PromptSet, PromptItem]
