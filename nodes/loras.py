"""The nodes that apply a LoRA to a policy, and that write one for other tools."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..trainers.errors import UserError, is_utf8
from ..trainers.errors import shown as short_value
from ..trainers.lora.formats import (
    LoRA,
    read_lora,
    read_lora_header,
    write_diffusers,
    write_native,
    write_peft,
)
from ..trainers.lora.inject import check_fits
from ..trainers.modelfiles.inspection import inspect_file
from . import folders
from .inputs import require_choice, require_given
from .types import LazyPolicy, WanPolicyType

CATEGORY = "Identity-GRPO/LoRA"
COMFYUI, PEFT, DIFFUSERS = "ComfyUI (one file)", "PEFT (folder)", "diffusers (folder)"
LONGEST = 150  # bytes of a folder or file that a prefix names: a number and an ending are added
FORMATS = {COMFYUI: write_native, PEFT: write_peft, DIFFUSERS: write_diffusers}

logger = logging.getLogger(__name__)


def lora_input(built_in: bool = False) -> io.Input:
    """`built_in`: the LoRA for TinyWorld's VACE is offered as well."""
    return io.Combo.Input(
        "lora",
        options=folders.lora_choices(built_in=built_in),
        tooltip="A file or folder of models/loras, or a training run to follow: its newest (`latest`) or best "
        "evaluated (`best`) LoRA is looked up each time the graph is queued.",
    )


def strength_input() -> io.Input:
    return io.Float.Input(
        "strength",
        default=1.0,
        min=-10.0,
        max=10.0,
        step=0.05,
        tooltip="Strength of the LoRA: 1 as trained, 0 the model without it. Lower it if the LoRA is too strong.",
    )


class LoRANode(io.ComfyNode):
    """A node with the input `lora`, which is checked before anything runs, and looked up again at every queue."""

    @classmethod
    def validate_inputs(cls, lora=None) -> bool | str:
        return _problem(lora) or True

    @classmethod
    def fingerprint_inputs(cls, lora=None, **_) -> str:
        return "" if lora is None else repr(folders.find_lora(lora).fingerprint)


def find_and_read(choice: str) -> tuple[folders.LoraFile, LoRA]:
    """The file behind a choice at this moment, and the LoRA in it."""
    file = folders.find_lora(choice)
    return file, read_lora(file.path)


def check_strength(strength: float) -> None:
    """Raises UserError for a strength that is not finite, which ComfyUI lets through."""
    if not math.isfinite(strength):
        raise UserError(f"strength {strength} is not a finite number; give one such as 1")


def shown(file: folders.LoraFile, lora: LoRA, before: str = "", after: str = "") -> dict[str, tuple]:
    """The node's result in the editor and in ComfyUI's history: a text that names the LoRA, its run and its iteration.

    A file without run and iteration is named by the choice, with what it is. Iteration 0 is logged as a warning:
    nothing is trained yet.
    """
    run, iteration = lora.metadata.get("run", "")[:100], lora.metadata.get("iteration", "")
    if not (run and len(iteration) < 10 and iteration.isdecimal()):
        return {"text": (f"{before}{file.label}{after}\nFile: {inspect_file(file.path)}",)}
    name = f"run {run}, iteration {iteration}"
    if int(iteration) == 0:
        is_base = not any(up.float().any() for _, up in lora.modules.values())
        name += f": the {'base model' if is_base else 'start LoRA'}, nothing is trained yet"
        logger.warning("Identity-GRPO: %s", name)
    return {"text": (f"{before}{name}{after}",), "run": (run,), "iteration": (int(iteration),)}


def _problem(choice: str | None) -> str | None:
    """What is wrong with a choice, before anything is loaded; None for a good one, and for what a link will bring."""
    if choice is None:
        return None
    try:
        file = folders.find_lora(choice)
        return _file_problem(file.path, tuple(file.fingerprint))
    except (UserError, OSError) as error:
        return str(error)


@lru_cache(maxsize=256)
def _file_problem(path: Path, fingerprint: tuple[tuple[str, int, int], ...]) -> str | None:
    """What is wrong with a file by its header; cached until `fingerprint` changes."""
    try:
        read_lora_header(path)
    except UserError as error:
        return str(error)
    return None


class LoadLoRA(LoRANode):
    """The same policy with one more LoRA; the model is shared, not loaded again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOLoadLoRA",
            display_name="Load LoRA",
            category=CATEGORY,
            description="Applies a LoRA to a model of Load Model without loading it again, and follows a training run. "
            "Chain several to use them together.",
            search_aliases=["lora", "lora loader", "hot swap", "checkpoint", "identity", "grpo", "peft"],
            inputs=[
                WanPolicyType.Input(
                    "policy", tooltip="The video model, from Load Model, or from a Load LoRA whose LoRA acts as well."
                ),
                lora_input(built_in=True),
                strength_input(),
            ],
            outputs=[WanPolicyType.Output("policy", tooltip="The same model with the LoRA, for the samplers.")],
        )

    @classmethod
    def execute(cls, policy: LazyPolicy, lora: str, strength: float) -> io.NodeOutput:
        require_given("policy", policy, LazyPolicy, "Load Model")
        check_strength(strength)
        file, content = find_and_read(lora)
        check_fits(policy.policy.transformer, content)
        result = replace(policy, loras=(*policy.loras, (file, strength)))
        after = f", at strength {strength:g}"
        if policy.loras:
            after += f"; with {', '.join(f'{other.label} at {value:g}' for other, value in policy.loras)}"
        return io.NodeOutput(result, ui=shown(file, content, after=after))


class SaveLoRA(LoRANode):
    """Write a LoRA in the format of another tool."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOSaveLoRA",
            display_name="Save LoRA",
            category=CATEGORY,
            description="Writes a LoRA into ComfyUI's output folder, in the format of ComfyUI, PEFT or diffusers.",
            search_aliases=["export lora", "convert lora", "grpo", "peft", "diffusers", "safetensors"],
            inputs=[
                lora_input(),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default=COMFYUI,
                    tooltip="ComfyUI: for ComfyUI and WanVideoWrapper. PEFT: for PeftModel and training tools. "
                    "diffusers: for pipeline.load_lora_weights.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="loras/identity_grpo",
                    tooltip="Name within ComfyUI's output folder; a number is added, and nothing is overwritten.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, lora: str, format: str, filename_prefix: str) -> io.NodeOutput:
        require_choice("format", format, list(FORMATS))
        file, content = find_and_read(lora)
        target = _free_place(filename_prefix, ".safetensors" if format == COMFYUI else "")
        FORMATS[format](content, target)
        place = target.relative_to(folder_paths.get_output_directory()).as_posix()
        return io.NodeOutput(ui=shown(file, content, before=f"output/{place}\n"))


def _free_place(prefix: str, suffix: str) -> Path:
    """An unused name below the output folder.

    Raises UserError for an empty prefix, one outside that folder, or one that no file can have.
    """
    prefix = str(prefix)  # a link may bring any type
    if "\0" in prefix or not is_utf8(prefix) or any(len(part.encode()) > LONGEST for part in Path(prefix).parts):
        raise UserError(
            f"filename_prefix `{short_value(prefix)}` is no name for a file; give one such as loras/identity_grpo"
        )
    try:
        folder, name, _, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    except Exception as error:  # core raises a bare Exception for a path outside
        raise UserError(
            f"filename_prefix `{prefix}` cannot be written within ComfyUI's output folder; "
            "give a name such as loras/identity_grpo"
        ) from error
    if not name.strip("."):
        raise UserError(f"filename_prefix `{prefix}` has no name at its end; give one such as loras/identity_grpo")
    names = (Path(folder) / f"{name}_{number:05}{suffix}" for number in range(1, 100000))
    return next(path for path in names if not path.exists())


NODES = [LoadLoRA, SaveLoRA]
