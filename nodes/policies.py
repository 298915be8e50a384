"""The node that loads a video model."""

from __future__ import annotations

import logging
from importlib.util import find_spec

import comfy.model_management as management
import torch
from comfy_api.latest import io, ui

from ..trainers.config import BUILT_IN, PolicyConfig
from ..trainers.errors import UserError
from ..trainers.memory.sizes import ITEM_SIZE
from ..trainers.modelfiles.inspection import inspect_file
from ..trainers.policies.base import Policy
from ..trainers.policies.compiling import compile_blocks
from ..trainers.policies.fp8 import require_fp8
from ..trainers.policies.load import count_parameters, policy_of, recognise
from ..trainers.policies.parts import Parts, find_parts
from ..trainers.policies.transformer_file import describe_transformer
from . import folders
from .fit import room
from .inputs import require_choice
from .memory import Managed
from .types import POLICY_TITLES, LazyPolicy, OnUse, WanPolicyType

logger = logging.getLogger(__name__)

AUTO = "auto"
DTYPES = [AUTO, "bfloat16", "float32"]
SDPA, FLASH = "sdpa", "flash"
WHEN_NEEDED, AFTER_USE, TEXT_ON_CPU = "when memory is needed", "after every use", "text encoder stays on the CPU"
OFFLOADS = [WHEN_NEEDED, AFTER_USE, TEXT_ON_CPU]
COMPILES = [AUTO, "always", "never"]
CONVERTED, STORED, PRODUCTS = "converted", "stored", "fp8 products"
WEIGHTS = [AUTO, CONVERTED, STORED, PRODUCTS]


class LoadModel(io.ComfyNode):
    """VACE or Phantom, recognised from the files."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        models = folders.policy_choices()
        return io.Schema(
            node_id="IdentityGRPOLoadModel",
            display_name="Load Model",
            category="Identity-GRPO/policies",
            description="A VACE or Phantom model (Wan 2.1) with its text encoder and VAE, for sampling or training. It "
            "loads when a sampler first needs it; Train loads it in its own process only.",
            search_aliases=["vace", "phantom", "wan", "policy", "load video model", "tinyworld", "identity"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=models,
                    default=folders.default_policy(models),
                    tooltip="A folder of models/diffusers, a file of models/diffusion_models (GGUF too), or a built-in "
                    "miniature. Whether it is VACE or Phantom is recognised.",
                ),
                io.Combo.Input(
                    "text_encoder",
                    options=folders.part_choices("text_encoders"),
                    tooltip=f"The UMT5-XXL file of models/text_encoders; `{folders.WITH_MODEL}` when it lies in the "
                    "model's diffusers folder or next to its file.",
                ),
                io.Combo.Input(
                    "vae",
                    options=folders.part_choices("vae"),
                    tooltip=f"The Wan 2.1 VAE of models/vae; `{folders.WITH_MODEL}` when it lies in the model's "
                    "diffusers folder or next to its file.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=DTYPES,
                    default=AUTO,
                    advanced=True,
                    tooltip="Precision of transformer and text encoder. "
                    "auto: bfloat16 on a GPU that supports it, float32 elsewhere.",
                ),
                io.Combo.Input(
                    "attention",
                    options=_attentions(),
                    default=SDPA,
                    advanced=True,
                    tooltip="sdpa is PyTorch's own; flash needs the flash-attn package and bfloat16.",
                ),
                io.Combo.Input(
                    "offload",
                    options=OFFLOADS,
                    default=WHEN_NEEDED,
                    advanced=True,
                    tooltip="When the parts of the model leave the GPU. A part that is too large for the card waits in "
                    "the computer's memory and comes block by block, whatever is chosen here.",
                ),
                io.Combo.Input(
                    "vace_module",
                    options=folders.module_choices(),
                    default=folders.NO_MODULE,
                    optional=True,
                    advanced=True,
                    tooltip="The file of VACE's control blocks, when the model is the text-to-video file that they "
                    "belong to (as WanVideoWrapper splits VACE).",
                ),
                io.Combo.Input(
                    "compile",
                    options=COMPILES,
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="Compile the transformer's blocks: steps get faster, and the first video takes up to a "
                    "minute longer, again after changes of size. auto: on a GPU with Triton; never: for small videos.",
                ),
                io.Combo.Input(
                    "weights",
                    options=WEIGHTS,
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="8-bit weights of the file (FP8, int8): stored keeps them so, in half the memory, and "
                    "each layer converts its own as it computes; converted saves that work, the videos are the same. "
                    "auto: stored where the converted model does not fit on the GPU; Train then uses converted. "
                    "fp8 products: stored, and multiplied in FP8, on NVIDIA Ada or newer; videos differ a bit.",
                ),
            ],
            outputs=[WanPolicyType.Output("policy", tooltip="The video model, for samplers, Load LoRA and Train.")],
        )

    @classmethod
    def validate_inputs(cls, model=None) -> bool | str:
        # Core repeats the answer for every input that is named here, so only one is.
        try:
            if model is not None:
                recognise(folders.policy_source(model))
        except UserError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: str,
        text_encoder: str,
        vae: str,
        dtype: str,
        attention: str,
        offload: str,
        vace_module: str = folders.NO_MODULE,
        compile: str = AUTO,
        weights: str = AUTO,
    ) -> io.NodeOutput:
        for name, value, options in (
            ("dtype", dtype, DTYPES),
            ("attention", attention, _attentions()),
            ("offload", offload, OFFLOADS),
            ("compile", compile, COMPILES),
            ("weights", weights, WEIGHTS),
        ):
            require_choice(name, value, options)
        dtype = _dtype(dtype)
        if attention == FLASH and dtype == "float32":
            raise UserError("attention `flash` cannot compute in float32; choose dtype bfloat16, or attention sdpa")
        if weights == PRODUCTS:
            _require_fp8(dtype)
        source = folders.policy_source(model)
        text_path, vae_path = folders.part_source("text_encoders", text_encoder), folders.part_source("vae", vae)
        module = folders.module_source(vace_module)
        parts = find_parts(source, text_path, vae_path, module)
        config = PolicyConfig(
            source=source,
            dtype=dtype,
            text_encoder=text_path,
            vae=vae_path,
            vace_module=module,
            compile=compile,
            weights=STORED if weights in (STORED, PRODUCTS) else CONVERTED,
            fp8=weights == PRODUCTS,
        )
        here = _fitting(config, parts) if weights == AUTO else config
        lazy = LazyPolicy(recognise(source, module), config, OnUse(lambda: _load(here, attention, offload)))
        return io.NodeOutput(lazy, ui=ui.PreviewText(_summary(lazy)))


def _load(config: PolicyConfig, attention: str, offload: str) -> tuple[Policy, Managed]:
    with torch.inference_mode(False):
        policy = policy_of(config, management.unet_offload_device(), management.get_torch_device())
        parts = [policy.transformer, policy.vae.model, policy.text.encoder]
        if offload == TEXT_ON_CPU:
            parts.pop().to("cpu")
    if attention == FLASH:
        policy.transformer.set_attention_backend(FLASH)
        reason = "attention is flash"
    else:
        reason = compile_blocks(policy.transformer, config.compile, management.get_torch_device())
    logger.info("Load Model: %s", f"not compiled, {reason}" if reason else "blocks are compiled at their first use")
    return policy, Managed(*parts, release=offload == AFTER_USE)


def _require_fp8(dtype: str) -> None:
    """Raises UserError where FP8 products cannot run."""
    try:
        require_fp8(management.get_torch_device(), getattr(torch, dtype))
    except UserError as error:
        raise UserError(
            "weights `fp8 products` needs an NVIDIA GPU of the Ada or Hopper generation or newer, and dtype bfloat16; "
            "choose weights auto"
        ) from error


def _fitting(config: PolicyConfig, parts: Parts) -> PolicyConfig:
    """With 8-bit weights as they are stored, where there are any and the model does not fit on the GPU without."""
    found = describe_transformer(parts.transformer, parts.vace_module)
    needed = found.parameters * ITEM_SIZE[config.dtype]
    if not found.stored or needed <= room():
        return config
    return config.model_copy(update={"weights": STORED})


def _attentions() -> list[str]:
    usable = management.get_torch_device().type == "cuda" and find_spec("flash_attn") is not None
    return [SDPA, FLASH] if usable else [SDPA]


def _dtype(choice: str) -> str:
    if choice != AUTO:
        return choice
    device = management.get_torch_device()
    return "bfloat16" if device.type != "cpu" and management.should_use_bf16(device) else "float32"


def _summary(lazy: LazyPolicy) -> str:
    """Kind, size, precision and device, and what the file is, shown on the node."""
    count = count_parameters(lazy.config.source, lazy.config.vace_module)
    size = f"{count / 1e9:.1f} billion" if count >= 1e8 else f"{count / 1e6:.1f} million"
    text = f"{POLICY_TITLES[lazy.kind]}, {size} parameters, {lazy.config.dtype}, {management.get_torch_device()}"
    return text if lazy.config.source in BUILT_IN else f"{text}\nFile: {inspect_file(lazy.config.source)}"


NODES = [LoadModel]
