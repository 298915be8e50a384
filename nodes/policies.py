"""The node that loads a video model."""

from __future__ import annotations

from importlib.util import find_spec

import comfy.model_management as management
import torch
from comfy_api.latest import io, ui

from ..trainers.config import PolicyConfig
from ..trainers.errors import UserError
from ..trainers.policies.base import Policy
from ..trainers.policies.load import count_parameters, find_parts, policy_of, recognise
from . import folders
from .memory import Managed
from .types import KINDS, LazyPolicy, OnUse, WanPolicy

AUTO = "auto"
DTYPES = [AUTO, "bfloat16", "float32"]
SDPA, FLASH = "sdpa", "flash"
WHEN_NEEDED, AFTER_USE, TEXT_ON_CPU = "when memory is needed", "after every use", "text encoder stays on the CPU"
OFFLOADS = [WHEN_NEEDED, AFTER_USE, TEXT_ON_CPU]


class LoadModel(io.ComfyNode):
    """VACE or Phantom, recognised from the files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOLoadModel",
            display_name="Load Model (VACE or Phantom)",
            category="Identity-GRPO/policies",
            description="A VACE or Phantom model (Wan 2.1) with text encoder and VAE, to sample or train. It is loaded when a sampler first "
            "needs it; Train loads it in its own process only.",
            search_aliases=["vace", "phantom", "wan", "policy", "load video model", "tinyworld", "identity"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=folders.policy_choices(),
                    tooltip="A built-in miniature, a diffusers folder of models/diffusers, or a file of "
                    "models/diffusion_models. Whether it is VACE or Phantom is recognised.",
                ),
                io.Combo.Input(
                    "text_encoder",
                    options=folders.part_choices("text_encoders"),
                    tooltip=f"`{folders.WITH_MODEL}`: in the diffusers folder, or next to the file. "
                    "Else the UMT5-XXL file of models/text_encoders.",
                ),
                io.Combo.Input(
                    "vae",
                    options=folders.part_choices("vae"),
                    tooltip=f"`{folders.WITH_MODEL}`: in the diffusers folder, or next to the file. "
                    "Else the Wan 2.1 VAE of models/vae.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=DTYPES,
                    default=AUTO,
                    advanced=True,
                    tooltip="Precision of transformer and text encoder. "
                    "auto: bfloat16 on a GPU that knows it, float32 elsewhere.",
                ),
                io.Combo.Input(
                    "attention",
                    options=_attentions(),
                    default=SDPA,
                    advanced=True,
                    tooltip="sdpa is PyTorch's own; "
                    "flash is offered when the flash-attn package is installed, and wants bfloat16.",
                ),
                io.Combo.Input(
                    "offload",
                    options=OFFLOADS,
                    default=WHEN_NEEDED,
                    advanced=True,
                    tooltip="When the parts of the model leave the GPU. On a card with 12 GB or less keep the text "
                    "encoder on the CPU: it is the largest part, and reads each prompt only once.",
                ),
            ],
            outputs=[WanPolicy.Output("policy", tooltip="The video model, for samplers, Load LoRA and Train.")],
        )

    @classmethod
    def validate_inputs(cls, model=None, text_encoder=None, vae=None, attention=None, dtype=None) -> bool | str:
        try:
            if model is not None:
                find_parts(*_sources(model, text_encoder, vae))
                recognise(folders.policy_source(model))
        except UserError as error:
            return str(error)
        return _attention_problem(attention, dtype) or True

    @classmethod
    def execute(
        cls, model: str, text_encoder: str, vae: str, dtype: str, attention: str, offload: str
    ) -> io.NodeOutput:
        source, text_path, vae_path = _sources(model, text_encoder, vae)
        config = PolicyConfig(source=source, dtype=_dtype(dtype), text_encoder=text_path, vae=vae_path)
        lazy = LazyPolicy(recognise(source), config, OnUse(lambda: _load(config, attention, offload)))
        return io.NodeOutput(lazy, ui=ui.PreviewText(_summary(lazy)))


def _load(config: PolicyConfig, attention: str, offload: str) -> tuple[Policy, Managed]:
    with torch.inference_mode(False):
        policy = policy_of(config, management.unet_offload_device())
        parts = [policy.transformer, policy.vae.model, policy.text.encoder]
        if offload == TEXT_ON_CPU:
            parts.pop().to("cpu")
    if attention == FLASH:
        policy.transformer.set_attention_backend(FLASH)
    return policy, Managed(*parts, leave=offload == AFTER_USE)


def _attentions() -> list[str]:
    usable = management.get_torch_device().type == "cuda" and find_spec("flash_attn") is not None
    return [SDPA, FLASH] if usable else [SDPA]


def _attention_problem(attention: str | None, dtype: str | None) -> str | None:
    for name, value, options in (("attention", attention, _attentions()), ("dtype", dtype, DTYPES)):
        if value is not None and value not in options:
            return f"{name} `{value}` is not offered here; choose {' or '.join(options)}"
    if attention == FLASH and dtype is not None and _dtype(dtype) == "float32":
        return "attention `flash` cannot compute in float32; choose dtype bfloat16, or attention sdpa"
    return None


def _sources(model: str, text_encoder: str | None, vae: str | None) -> tuple[str, str | None, str | None]:
    """What the trainers understand for the three choices; None for a part that lies beside the model."""
    return (
        folders.policy_source(model),
        folders.part_source("text_encoders", text_encoder or folders.WITH_MODEL),
        folders.part_source("vae", vae or folders.WITH_MODEL),
    )


def _dtype(choice: str) -> str:
    if choice != AUTO:
        return choice
    device = management.get_torch_device()
    return "bfloat16" if device.type != "cpu" and management.should_use_bf16(device) else "float32"


def _summary(lazy: LazyPolicy) -> str:
    """Kind, size, precision and place, for the node's face."""
    count = count_parameters(lazy.config.source)
    size = f"{count / 1e9:.1f} billion" if count >= 1e8 else f"{count / 1e6:.1f} million"
    return (
        f"{KINDS[lazy.kind]}, {size} parameters, {lazy.config.dtype}, on {management.get_torch_device()} while in use"
    )


NODES = [LoadModel]
