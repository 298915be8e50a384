"""The nodes that put a LoRA on a policy, and write one for other tools."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..trainers.errors import UserError
from ..trainers.lora.formats import LoRA, read_lora, write_native, write_peft
from ..trainers.lora.inject import check_fits
from . import folders
from .types import LazyPolicy, WanPolicy

CATEGORY = "Identity-GRPO/LoRA"
COMFYUI, PEFT = "ComfyUI (one file)", "PEFT (folder)"


def lora_input() -> io.Input:
    return io.Combo.Input(
        "lora",
        options=folders.lora_choices(),
        tooltip="A file or PEFT folder of models/loras, or a run to follow: `latest` and `best` are looked up at every queue, so new "
        "checkpoints are taken up without reloading the model. May be linked from the Run node.",
    )


def strength_input() -> io.Input:
    return io.Float.Input(
        "strength",
        default=1.0,
        min=-10.0,
        max=10.0,
        step=0.05,
        tooltip="How much of the LoRA acts; 1 as trained, 0 exactly the model without it.",
    )


def lora_problem(choice: str | None) -> str | None:
    """What is wrong with a widget's choice, before anything loads; None for a good one and for what a link will bring."""
    try:
        if choice is not None:
            read_lora(folders.find_lora(choice).path)
    except UserError as error:
        return str(error)
    return None


def fingerprint(choice: str | None) -> str:
    """Changes when the file behind the choice does."""
    return "" if choice is None else repr(folders.find_lora(choice).fingerprint)


def read(choice: str) -> tuple[folders.LoraFile, LoRA]:
    file = folders.find_lora(choice)
    return file, read_lora(file.path)


def held(file: folders.LoraFile, lora: LoRA) -> str:
    """Which LoRA this is, in words: the run and iteration that it comes from, where the file says so."""
    run, iteration = lora.metadata.get("run"), lora.metadata.get("iteration")
    return f"run {run}, iteration {iteration}" if run and iteration else file.label


class LoadLoRA(io.ComfyNode):
    """A policy that acts with a LoRA; the model is shared, not loaded again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOLoadLoRA",
            display_name="Load LoRA (for our samplers)",
            category=CATEGORY,
            description="Puts an Identity-GRPO LoRA on a policy without reloading it, and follows a run as it improves.",
            search_aliases=["lora", "hot swap", "checkpoint", "identity", "peft"],
            inputs=[
                WanPolicy.Input("policy", tooltip="The model from Load Model; a LoRA that it has already is replaced."),
                lora_input(),
                strength_input(),
            ],
            outputs=[WanPolicy.Output("policy", tooltip="The same model, acting with the LoRA.")],
        )

    @classmethod
    def validate_inputs(cls, lora=None) -> bool | str:
        return lora_problem(lora) or True

    @classmethod
    def fingerprint_inputs(cls, lora=None, **_) -> str:
        return fingerprint(lora)

    @classmethod
    def execute(cls, policy: LazyPolicy, lora: str, strength: float) -> io.NodeOutput:
        file, content = read(lora)
        check_fits(policy.policy.transformer, content)
        acting = replace(policy, lora=file, strength=strength)
        return io.NodeOutput(acting, ui=ui.PreviewText(f"{held(file, content)}, at strength {strength:g}"))


class SaveLoRA(io.ComfyNode):
    """Any LoRA that can be read, in the form another tool wants."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOSaveLoRA",
            display_name="Save LoRA (for other tools)",
            category=CATEGORY,
            description="Writes a LoRA into ComfyUI's output folder, as one file for ComfyUI and WanVideoWrapper or as a PEFT folder.",
            search_aliases=["export lora", "convert lora", "peft", "safetensors"],
            inputs=[
                lora_input(),
                io.Combo.Input(
                    "format",
                    options=[COMFYUI, PEFT],
                    default=COMFYUI,
                    tooltip="ComfyUI: native names with alpha, which core and WanVideoWrapper load. PEFT: for diffusers and training tools.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="loras/identity_grpo",
                    tooltip="Name within ComfyUI's output folder; a number is added, so that nothing is overwritten.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, lora=None) -> bool | str:
        return lora_problem(lora) or True

    @classmethod
    def fingerprint_inputs(cls, lora=None, **_) -> str:
        return fingerprint(lora)

    @classmethod
    def execute(cls, lora: str, format: str, filename_prefix: str) -> io.NodeOutput:
        file, content = read(lora)
        target = _free_place(filename_prefix, "" if format == PEFT else ".safetensors")
        write_peft(content, target) if format == PEFT else write_native(content, target)
        place = target.relative_to(folder_paths.get_output_directory()).as_posix()
        return io.NodeOutput(ui=ui.PreviewText(f"output/{place}\n{held(file, content)}"))


def _free_place(prefix: str, suffix: str) -> Path:
    """A name below the output folder that is not taken. Raises UserError for a prefix that is none, or leads out of it."""
    try:
        folder, name, _, _, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    except Exception as error:  # core raises a bare Exception for a path outside
        raise UserError(
            f"filename_prefix `{prefix}` is no place that can be written within ComfyUI's output folder; "
            "give a name such as loras/identity_grpo"
        ) from error
    if not name.strip("."):
        raise UserError(f"filename_prefix `{prefix}` has no name at its end; give one such as loras/identity_grpo")
    names = (Path(folder) / f"{name}_{number:05}{suffix}" for number in range(1, 100000))
    return next(path for path in names if not path.exists())


NODES = [LoadLoRA, SaveLoRA]
