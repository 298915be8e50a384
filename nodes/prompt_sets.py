"""The nodes that load a prompt set from a CSV, and that make one in the graph."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management as management
import comfy.utils
import torch
from comfy_api.latest import io, ui

from ..trainers.errors import UserError, shown
from ..trainers.pictures.boards import prompt_board
from ..trainers.pictures.reading import read_pixels
from ..trainers.policies.wan import fit_on_white
from ..trainers.prompts import MAX_ROWS, PromptItem, PromptSet, load_prompt_set
from ..trainers.scenes.make import HELD_OUT, ITEMS, describe_balance, make_sets, most_items, scenes_for
from ..trainers.scenes.portraits import check_portraits, read_people
from . import folders
from .inputs import clean_prompt, prompt_problem
from .pictures import references_input, to_image, to_references
from .types import PromptSetType

CATEGORY = "Identity-GRPO/prompt sets"
BUILT_IN_ITEMS = 64
BUILT_IN_SCENES, NO_FOLDER = "200 scenes (built in)", "no folder of portraits yet"
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
            count = len(prompts)
            choose = f"choose 1 to {count}" if count > 1 else "choose 1"
            raise UserError(f"there is no row {item}: `{file}` has {count} row{'s' * (count != 1)}; {choose}")
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


class MakePromptSet(io.ComfyNode):
    """Portraits times scenes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOMakePromptSet",
            display_name="Make Prompt Set",
            category=CATEGORY,
            description="Makes a prompt set of a folder of portraits and a list of scenes: every person and every "
            "scene as often as the others, with people and scenes held out for evaluation.",
            search_aliases=["dataset", "portraits", "scenes", "training data", "prompt set", "references"],
            inputs=[
                io.Combo.Input(
                    "portraits",
                    options=folders.portrait_choices() or [NO_FOLDER],
                    tooltip="A folder in ComfyUI's input folder with a picture, or a folder of pictures, for each "
                    "person. NAME.txt beside a picture describes the person.",
                ),
                io.Combo.Input(
                    "scenes",
                    options=[BUILT_IN_SCENES, *folders.text_choices()],
                    default=BUILT_IN_SCENES,
                    tooltip="200 scenes of two and three people that come with the pack, or a text file of the input "
                    "folder with one scene in each line; the help page shows its form.",
                ),
                io.Int.Input(
                    "people",
                    default=2,
                    min=1,
                    max=8,
                    tooltip="People in each video; the built-in scenes are for 2 or 3.",
                ),
                io.Int.Input(
                    "rows",
                    default=ITEMS,
                    min=1,
                    max=MAX_ROWS,
                    tooltip="Rows to train on, at most; some hundreds are good.",
                ),
                io.Int.Input(
                    "held_out",
                    default=HELD_OUT,
                    min=1,
                    max=MAX_ROWS,
                    tooltip="Rows for evaluation, at most, of people and scenes that no training row has.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**32 - 1,
                    control_after_generate=False,  # another seed after each queue would be another training run
                    tooltip="Seed of the order and the pairs.",
                ),
                io.Boolean.Input(
                    "check_faces",
                    default=True,
                    tooltip="Refuse portraits that do not show one face, large and sharp. Turn it off for illustrated "
                    "people.",
                ),
            ],
            outputs=[
                PromptSetType.Output("prompt_set", tooltip="The rows to train on, for Train."),
                PromptSetType.Output("evaluation_set", tooltip="The held-out rows, for Train."),
            ],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, portraits=None, scenes=None, **_) -> str:
        try:
            paths = [path for path in folders.portrait_path(portraits).rglob("*") if path.is_file()]
            paths += [] if scenes in (None, BUILT_IN_SCENES) else [folders.text_path(scenes)]
            return repr(sorted((str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in paths))
        except (UserError, OSError) as error:
            return str(error)  # gone since it was validated: execute raises the error

    @classmethod
    def execute(
        cls, portraits: str, scenes: str, people: int, rows: int, held_out: int, seed: int, check_faces: bool
    ) -> io.NodeOutput:
        if portraits == NO_FOLDER:
            raise UserError(
                "no folder of ComfyUI's input folder has pictures; put one with portraits there and refresh"
            )
        found = read_people(folders.portrait_path(portraits), _refusal)
        lines = scenes_for(people, None if scenes == BUILT_IN_SCENES else folders.text_path(scenes))
        most = most_items(len(found), len(lines), people)
        sets = make_sets(found, lines, people, min(rows, most[0]), min(held_out, most[1]), seed)
        if check_faces:
            progress = comfy.utils.ProgressBar(sum(len(person.portraits) for person in found))

            def advance() -> None:
                management.throw_exception_if_processing_interrupted()
                progress.update(1)

            check_portraits(found, advance)
        train, evaluation = (PromptSet(tuple(items), f"portraits `{portraits}`") for items in sets)
        board = prompt_board(train.items[:ROWS_SHOWN], len(train))
        shown_as = ui.PreviewImage(to_image(board), cls=cls).as_dict()
        text = f"{describe_balance(train)}\nheld out: {describe_balance(evaluation)}"
        return io.NodeOutput(train, evaluation, ui=shown_as | {"text": (text,)})


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


NODES = [LoadPromptSet, AppendPromptItem, MakePromptSet]
