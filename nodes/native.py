"""The nodes for core's own Wan graphs: our LoRA on its MODEL, several references in its VACE conditioning."""

from __future__ import annotations

import comfy.lora
import comfy.model_management as management
import node_helpers
import torch
from comfy.latent_formats import Wan21
from comfy_api.latest import io, ui
from torch import Tensor

from ..trainers.errors import UserError
from ..trainers.lora.formats import native_tensors
from ..trainers.policies.base import VideoSize
from ..trainers.policies.vace import control_latents, split_source
from ..trainers.policies.wan import fit_on_white
from .loras import CATEGORY as LORA_CATEGORY
from .loras import fingerprint, held, lora_input, lora_problem, read, strength_input
from .pictures import opaque, references_input
from .sampling import size_problem, to_control_clip, to_control_mask

CATEGORY = "Identity-GRPO/native"


class ApplyLoRA(io.ComfyNode):
    """The LoRA for core's samplers and anyone's Wan graphs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOApplyLoRA",
            display_name="Apply LoRA (to a native MODEL)",
            category=LORA_CATEGORY,
            description="Puts an Identity-GRPO LoRA on ComfyUI's own Wan MODEL, in any format, and follows a run as it improves. Unlike "
            "core's loader it refuses a LoRA of which a part does not fit.",
            search_aliases=["lora", "lora loader", "wan lora", "hot swap", "identity"],
            inputs=[
                io.Model.Input("model", tooltip="Core's Wan 2.1 model: VACE, or the one that Phantom runs on."),
                lora_input(),
                strength_input(),
            ],
            outputs=[io.Model.Output("model", tooltip="The model with the LoRA on it.")],
        )

    @classmethod
    def validate_inputs(cls, lora=None) -> bool | str:
        return lora_problem(lora) or True

    @classmethod
    def fingerprint_inputs(cls, lora=None, **_) -> str:
        return fingerprint(lora)

    @classmethod
    def execute(cls, model, lora: str, strength: float) -> io.NodeOutput:
        file, content = read(lora)
        keys, tensors = comfy.lora.model_lora_keys_unet(model.model, {}), native_tensors(content)
        loaded = comfy.lora.load_lora(tensors, keys, log_missing=False)
        _refuse_misfit(model, loaded, tensors)
        if content.metadata.get("policy") == "phantom" and any("vace_blocks" in key for key in keys):
            raise UserError(
                "this LoRA was trained for Phantom and this is a VACE model; load the model that Phantom runs on"
            )
        patched = model.clone()
        if strength:
            patched.add_patches(loaded, strength)
        return io.NodeOutput(patched, ui=ui.PreviewText(f"{held(file, content)}, at strength {strength:g}"))


class VACEReferences(io.ComfyNode):
    """Core's VACE conditioning takes one reference; this one takes a latent frame for each of several people."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOVACEReferences",
            display_name="VACE References (native, several people)",
            category=CATEGORY,
            description="Conditioning for core's VACE model with several reference people, each in a frame of its own as the model was "
            "trained. Sample with KSampler, then trim the latent by trim_latent and decode.",
            search_aliases=["WanVaceToVideo", "vace", "multiple references", "reference image", "subject to video"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="What the video should show."),
                io.Conditioning.Input("negative", tooltip="What it should not show."),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE."),
                references_input("One picture per person; each is fitted whole on white."),
                io.Int.Input(
                    "width", default=832, min=16, max=4096, step=16, tooltip="Of the video in pixels, a multiple of 16."
                ),
                io.Int.Input(
                    "height",
                    default=480,
                    min=16,
                    max=4096,
                    step=16,
                    tooltip="Of the video in pixels, a multiple of 16.",
                ),
                io.Int.Input("length", default=81, min=1, max=1025, step=4, tooltip="Number of frames, 4n+1."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1000.0,
                    step=0.01,
                    tooltip="How strongly the references and control act.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Videos drawn at once."),
                io.Image.Input(
                    "control_video",
                    optional=True,
                    tooltip="A clip to edit or follow; resized to the video, grey where it is too short.",
                ),
                io.Mask.Input(
                    "control_masks",
                    optional=True,
                    tooltip="White where the video is drawn anew; one mask serves all frames.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="For the sampler."),
                io.Conditioning.Output("negative", tooltip="For the sampler."),
                io.Latent.Output("latent", tooltip="Empty latents, with a frame for each reference in front."),
                io.Int.Output(
                    "trim_latent", tooltip="How many latent frames TrimVideoLatent has to cut off before decoding."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, references=None, width=None, height=None, length=None) -> bool | str:
        return size_problem(width, height, length) or True

    @classmethod
    def execute(
        cls,
        positive,
        negative,
        vae,
        references: dict,
        width: int,
        height: int,
        length: int,
        strength: float,
        batch_size: int,
        control_video: Tensor | None = None,
        control_masks: Tensor | None = None,
    ) -> io.NodeOutput:
        size, form = VideoSize(height, width, length), Wan21()

        def encode(clip: Tensor) -> Tensor:
            """Normalised latents [16, f, h, w] of a clip [3, F, H, W] in [-1, 1]."""
            return form.process_in(vae.encode((clip.permute(1, 2, 3, 0) + 1) / 2).float().cpu())[0]

        mask = torch.ones(length, height, width) if control_masks is None else to_control_mask(control_masks, size)
        blank = torch.zeros(3, length, height, width)
        video = blank if control_video is None else to_control_clip(control_video, size).permute(3, 0, 1, 2) / 127.5 - 1
        kept, redone = map(encode, split_source(video, mask))
        pictures = [picture for slot in references.values() if slot is not None for picture in opaque(slot)]
        people = [encode(fit_on_white((picture * 255).numpy(), height, width)[:, None]) for picture in pictures]
        control = control_latents(kept, redone, people, mask)[None]
        # Core normalises the 32 channels of latents itself, and takes the mask as it is.
        frames = torch.cat([form.process_out(part) for part in control[:, :32].split(16, dim=1)], dim=1)
        values = {"vace_frames": [frames], "vace_mask": [control[:, 32:]], "vace_strength": [strength]}
        conditioned = (node_helpers.conditioning_set_values(c, values, append=True) for c in (positive, negative))
        latent = torch.zeros(batch_size, 16, *control.shape[2:], device=management.intermediate_device())
        return io.NodeOutput(*conditioned, {"samples": latent}, len(people))


def _refuse_misfit(model, loaded: dict, tensors: dict[str, Tensor]) -> None:
    """Raises UserError unless every module of the LoRA has found its weight in the model, in the right shape."""
    weights = model.model.state_dict()
    for name in (key.removesuffix(".alpha") for key in tensors if key.endswith(".alpha")):
        weight = weights.get(f"{name}.weight")
        if weight is None or f"{name}.weight" not in loaded:
            raise UserError(f"the LoRA changes {name}, which this model does not have; it was made for another model")
        shape = tensors[f"{name}.lora_up.weight"].shape[0], tensors[f"{name}.lora_down.weight"].shape[1]
        if tuple(weight.shape) != shape:
            raise UserError(
                f"the LoRA's {name} is {shape[0]}x{shape[1]}, the model's {weight.shape[0]}x{weight.shape[1]}: "
                "it was made for a model of another size"
            )


NODES = [ApplyLoRA, VACEReferences]
