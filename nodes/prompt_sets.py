"""The nodes that load a prompt set from a CSV, and that make one in the graph."""

from __future__ import annotations

from pathlib import Path

import torch
from comfy_api.latest import io, ui

from ..trainers.errors import UserError, shown
from ..trainers.pictures.boards import prompt_board
from ..trainers.pictures.reading import read_pixels
from ..trainers.policies.wan import fit_on_white
from ..trainers.prompts import MAX_ROWS, PromptItem, PromptSet, load_prompt_set
from . import folders
from .inputs import clean_prompt, prompt_problem
from .pictures import references_input, to_image, to_references
from .types import PromptSetType

CATEGORY = "Identity-GRPO/prompt sets"
BUILT_IN_ITEMS = 64
ROWS_SHOWN = 8


class LoadPromptSet(io.ComfyNode):
    """A CSV of reference images and prompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOPromptSet",
            display_name="Load Prompt Set",
            category=CATEGORY,
            description="Loads rows of reference images and prompts for training or evaluation, shows the first of "
            "them, and outputs one row for a sampler.",
            search_aliases=["csv", "dataset", "prompts", "references", "training data", "prompt set", "grpo", "person"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folders.prompt_set_choices(),
                    tooltip="A CSV in ComfyUI's input folder with the columns ref_paths (pictures separated by `;`, "
                    "relative to the file) and prompt, optionally id and negative; or a built-in set.",
                ),
                io.Int.Input(
                    "item",
                    default=1,
                    min=1,
                    max=MAX_ROWS,
                    tooltip="The row that goes to the outputs references, prompt and negative; 1 is the first.",
                ),
            ],
            outputs=[
                PromptSetType.Output("prompt_set", tooltip="All rows, for Train."),
                io.Image.Output(
                    "references",
                    tooltip="The reference images of the chosen row; fitted on white if their sizes differ.",
                ),
                io.String.Output("prompt", tooltip="The prompt of the chosen row."),
                io.String.Output("negative", tooltip="The negative prompt of the chosen row."),
                io.Int.Output("count", tooltip="Number of rows."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, file=None) -> bool | str:
        # On the server's event loop: no picture is decoded here.
        try:
            if file is not None and file not in folders.BUILT_IN_SETS:
                _load(file, decode=False)
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file=None, **_) -> str:
        if file is None or file in folders.BUILT_IN_SETS:
            return ""
        try:
            pictures = (reference for item in _load(file, decode=False) for reference in item.references)
            paths = dict.fromkeys([folders.prompt_set_path(file), *pictures])
            return repr([(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in paths])
        except (UserError, OSError) as error:
            return str(error)  # deleted since it was validated: execute raises the error

    @classmethod
    def execute(cls, file: str, item: int) -> io.NodeOutput:
        prompts = _load(file)
        if not 1 <= item <= len(prompts):
            raise UserError(f"there is no row {item}: `{file}` has {len(prompts)} rows; choose 1 to {len(prompts)}")
        row = prompts[item - 1]
        preview = ui.PreviewImage(to_image(prompt_board(prompts.items[:ROWS_SHOWN], len(prompts))), cls=cls)
        return io.NodeOutput(prompts, _one_size(row.references), row.prompt, row.negative, len(prompts), ui=preview)


class AppendPromptItem(io.ComfyNode):
    """One row of a prompt set, made in the graph."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOPromptItem",
            display_name="Prompt Item",
            category=CATEGORY,
            description="Makes a row of a prompt set from reference images and a prompt. Chain several to make a set "
            "without a CSV.",
            search_aliases=["add prompt", "dataset row", "prompt list", "grpo", "person"],
            inputs=[
                references_input("One picture per person, in the order in which the prompt mentions them."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    tooltip="What happens in the video, with a few words on how each person looks.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    default="",
                    tooltip="What the video should not show. Empty: the training run's negative prompt is used.",
                ),
                PromptSetType.Input(
                    "prompt_set", optional=True, tooltip="The rows before this one; unconnected, a new set begins."
                ),
            ],
            outputs=[PromptSetType.Output("prompt_set", tooltip="The set with this row at its end.")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, prompt=None, references=None) -> bool | str:
        # Core passes groups of growing slots whether they are named or not.
        return prompt_problem(prompt) or True

    @classmethod
    def execute(
        cls, references: dict, prompt: str, negative: str, prompt_set: PromptSet | None = None
    ) -> io.NodeOutput:
        before = prompt_set.items if prompt_set is not None else ()
        taken = {item.id for item in before}
        number = next(n for n in range(len(before) + 1, len(before) + len(taken) + 2) if f"item-{n}" not in taken)
        item = PromptItem(f"item-{number}", clean_prompt(prompt).strip(), to_references(references), negative.strip())
        prompts = PromptSet((*before, item), "the graph")
        board = prompt_board(prompts.items[-ROWS_SHOWN:], len(prompts), "last")
        return io.NodeOutput(prompts, ui=ui.PreviewImage(to_image(board), cls=cls))


def _load(choice: str, decode: bool = True) -> PromptSet:
    """The set behind a choice. Raises UserError naming its wrong rows, or a picture outside of ComfyUI's folders."""
    if choice in folders.BUILT_IN_SETS:
        from ..trainers.tinyworld.prompts import tiny_prompt_set

        return PromptSet(tuple(tiny_prompt_set(folders.BUILT_IN_SETS[choice], BUILT_IN_ITEMS)), "tinyworld")
    return load_prompt_set(folders.prompt_set_path(choice), _refusal, decode)


def _refusal(picture: Path) -> str | None:
    try:
        allowed = folders.may_read(picture)
    except (OSError, ValueError, RuntimeError):  # no path, or links in a circle
        allowed = False
    if allowed:
        return None
    return f"reference image {shown(picture)} is outside of ComfyUI's input and output folders; put it there"


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


NODES = [LoadPromptSet, AppendPromptItem]
