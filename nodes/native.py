"""The nodes for graphs of ComfyUI's own Wan nodes: a LoRA on MODEL, several references in the VACE conditioning."""

from __future__ import annotations

import comfy.lora
import comfy.model_management as management
import node_helpers
import torch
from comfy.latent_formats import Wan21
from comfy_api.latest import io
from torch import Tensor

from ..trainers.errors import UserError
from ..trainers.lora.formats import native_tensors
from ..trainers.policies.base import VideoSize
from ..trainers.policies.vace import control_latents, split_source
from ..trainers.policies.wan import fit_on_white
from .loras import CATEGORY as LORA_CATEGORY
from .loras import LoRANode, check_strength, find_and_read, lora_input, shown, strength_input
from .pictures import named_references, opaque, references_input
from .sampling import frames_input, side_input, size_problem, to_control_clip, to_control_mask

CATEGORY = "Identity-GRPO/native"


class ApplyLoRA(LoRANode):
    """Core's MODEL with the LoRA on it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOApplyLoRA",
            display_name="Apply LoRA",
            category=LORA_CATEGORY,
            description="Applies a LoRA to ComfyUI's own Wan MODEL, and follows a training run. A LoRA of which a part "
            "does not fit is refused.",
            search_aliases=["lora", "lora loader", "wan lora", "hot swap", "identity", "grpo"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="ComfyUI's Wan 2.1 model: VACE, or the one of Phantom. LoRAs already on it stay."
                ),
                lora_input(),
                strength_input(),
            ],
            outputs=[io.Model.Output("model", tooltip="The model with the LoRA, for ComfyUI's samplers.")],
        )

    @classmethod
    def execute(cls, model, lora: str, strength: float) -> io.NodeOutput:
        check_strength(strength)
        file, content = find_and_read(lora)
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
        return io.NodeOutput(patched, ui=shown(file, content, after=f", at strength {strength:g}"))


class VACEReferences(io.ComfyNode):
    """Core's VACE conditioning has room for one reference; this one has a latent frame for each of several people."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOVACEReferences",
            display_name="VACE References",
            category=CATEGORY,
            description="Conditioning for ComfyUI's VACE model with several reference people, each in a latent frame "
            "as in VACE's training. Sample with KSampler, trim `trim_latent` frames with TrimVideoLatent, then decode.",
            search_aliases=[
                "WanVaceToVideo",
                "vace",
                "multiple references",
                "person",
                "face",
                "identity",
                "subject to video",
            ],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt: what the video shows."),
                io.Conditioning.Input("negative", tooltip="The negative prompt: what the video should not show."),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE, from Load VAE."),
                references_input("One picture per person, in the order in which the prompt mentions them."),
                side_input("width", 832, "Width of the video in pixels, a multiple of 16."),
                side_input("height", 480, "Height of the video in pixels, a multiple of 16."),
                frames_input("length", "Number of frames, 4n+1: 81 for Wan 2.1."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1000.0,
                    step=0.01,
                    tooltip="Strength of the references and of the control video; 1 as VACE was trained.",
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Number of videos sampled at once."),
                io.Image.Input(
                    "control_video",
                    optional=True,
                    tooltip="A clip to edit or to follow (poses, depth), resized to the video; missing frames are "
                    "grey.",
                ),
                io.Mask.Input(
                    "control_masks",
                    optional=True,
                    tooltip="White: generate; black: keep `control_video`. One mask serves all frames.",
                ),
            ],
            outputs=[
                io.Conditioning.Output("positive", tooltip="The prompt with the references, for the sampler."),
                io.Conditioning.Output("negative", tooltip="The negative prompt with the references, for the sampler."),
                io.Latent.Output("latent", tooltip="Empty latents with a frame for each reference in front."),
                io.Int.Output("trim_latent", tooltip="Number of latent frames that TrimVideoLatent must cut off."),
            ],
        )

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
        # Core checks the limits of these when it queues the graph, not their steps.
        if problem := size_problem(width, height, length):
            raise UserError(problem.replace("frames", "length"))
        check_strength(strength)
        size, form = VideoSize(height, width, length), Wan21()

        def encode(clip: Tensor) -> Tensor:
            """Normalised latents [16, f, h, w] of a clip [3, F, H, W] in [-1, 1]."""
            return form.process_in(vae.encode((clip.permute(1, 2, 3, 0) + 1) / 2).float().cpu())[0]

        pictures = named_references(references, read=opaque).values()
        mask, video = torch.ones(length, height, width), torch.zeros(3, length, height, width)
        if control_masks is not None:
            mask = to_control_mask(control_masks, size, "control_masks")
        if control_video is not None:
            video = to_control_clip(control_video, size).permute(3, 0, 1, 2) / 127.5 - 1
        kept, redone = map(encode, split_source(video, mask))
        people = [encode(fit_on_white((picture * 255).numpy(), height, width)[:, None]) for picture in pictures]
        control = control_latents(kept, redone, people, mask)[None]
        if not torch.isfinite(control).all():
            raise UserError("the VAE has made latents that are not finite; start ComfyUI with --fp32-vae")
        # Core normalises the 32 channels of latents itself, and uses the mask as it is.
        frames = torch.cat([form.process_out(part) for part in control[:, :32].split(16, dim=1)], dim=1)
        values = {"vace_frames": [frames], "vace_mask": [control[:, 32:]], "vace_strength": [strength]}
        conditioned = (node_helpers.conditioning_set_values(c, values, append=True) for c in (positive, negative))
        latent = torch.zeros(batch_size, 16, *control.shape[2:], device=management.intermediate_device())
        return io.NodeOutput(*conditioned, {"samples": latent}, len(people))


def _refuse_misfit(model, loaded: dict, tensors: dict[str, Tensor]) -> None:
    """Raises UserError unless the model has a weight of the right shape for every module of the LoRA."""
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
    for key in (key for key in tensors if key.endswith((".diff", ".diff_b"))):
        name, _, kind = key.rpartition(".")
        own = next((n for n in (f"{name}.{'bias' if kind == 'diff_b' else 'weight'}", name) if n in weights), None)
        if own is None or own not in loaded or weights[own].shape != tensors[key].shape:
            raise UserError(
                f"the LoRA changes {name}, which this model does not have so; it was made for another model"
            )


NODES = [ApplyLoRA, VACEReferences]
