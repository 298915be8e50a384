"""What a file of weights is, by the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from .names import WRAPPERS, without_wrappers

Shapes = Mapping[str, tuple[int, ...]]
# Suffixes of adapters, the most special first.
ADAPTERS = {
    r"\.lokr_w": "a LoKr",
    r"\.hada_w": "a LoHa",
    r"\.(dora_scale|lora_magnitude_vector)": "a DoRA",
    r"\.vera_lambda_": "a VeRA",
    r"\.(boft_[RS]|oft_diag)\b": "a BOFT adapter",
    r"\.oft_": "an OFT adapter",
    r"\.(a1|b1)\.weight$": "a GLoRA",
    r"\.ia3_l\b": "an IA3 adapter",
    r"(\.lora_(A|B|down|up)\b|_lora\.(down|up)\b)": "a LoRA",
}
# By parts of names, the first that is found.
MODELS = {
    "rm_head.": "an identity reward",
    "text_model.encoder.layers.": "a CLIP text encoder",
    "vision_model.encoder.layers.": "a CLIP vision encoder",
    "visual.transformer.resblocks.": "a CLIP vision encoder",
    "double_blocks.": "a transformer of another family (Flux, HunyuanVideo)",
    "single_transformer_blocks.": "a transformer of another family (Flux)",
    "joint_blocks.": "a transformer of another family (Stable Diffusion 3)",
    "transformer_blocks.": "a transformer of another family",
    "noise_refiner.": "a transformer of another family (Lumina, Z-Image)",
    "input_blocks.": "a UNet (Stable Diffusion)",
    "down_blocks.0.attentions.": "a UNet (Stable Diffusion)",
    "audio_encoder.": "an audio encoder",
}
# Of names with underscores wrappers are still a part.
_WAN_BLOCK = re.compile(
    rf"(?:^|[._])(?:vace_)?blocks[._]\d+[._](?:(?:{'|'.join(WRAPPERS)})[._])*(?:self_attn|cross_attn|attn[12]|ffn)[._]"
)
_LLM_LAYER = re.compile(r"layers\.0\.self_attn\.q_proj\.")
_T5_BIAS = re.compile(r"relative_attention_bias|pos_embedding\.embedding|attn_rel_b")
_T5_SECOND = re.compile(r"block\.1\.layer\.0\.|blocks\.1\.|blk\.1\.")
WIDTHS = {1536: "1.3B", 3072: "5B", 5120: "14B"}
"""The published Wan transformers by their width."""


def identify(shapes: Shapes) -> str | None:
    """The kind of a file with these tensors, with its article: `a VAE of Wan 2.1`; None for an unknown one.

    VACE and Phantom are not named here: `other_models` does, which knows their relatives.
    """
    names = {without_wrappers(name): shape for name, shape in shapes.items()}
    if kind := name_adapter(names):
        return f"{kind} for {_adapted(names)}"
    for find in (_vae, _text_encoder, _language_model):
        if what := find(names):
            return what
    return next((what for part, what in MODELS.items() if any(part in name for name in names)), None)


def name_adapter(names: Iterable[str]) -> str | None:
    """`a LoRA`, or the name of another kind of adapter; None for other files, as a whole reward with factors in it."""
    names = list(names)
    if any("rm_head." in name for name in names):
        return None
    return next((what for pattern, what in ADAPTERS.items() if any(re.search(pattern, n) for n in names)), None)


def _adapted(names: Shapes) -> str:
    """The model that an adapter is for: by its names, and the width of what it adds to."""
    if any(_WAN_BLOCK.search(name) for name in names):
        width = max((_width(name, shape) for name, shape in names.items()), default=0)
        kind = "VACE" if any("vace_blocks" in name for name in names) else "Wan"
        return f"{kind} {WIDTHS[width]}" if width in WIDTHS else kind
    if any("layers." in name and "_proj." in name for name in names):
        return "a language model (the adapter of a reward)"
    if any(name.startswith(("lora_te", "text_encoder")) for name in names):
        return "a text encoder"
    return "another model"


def _width(name: str, shape: tuple[int, ...]) -> int:
    """Channels of the hidden states, by a factor of an attention's output."""
    output = re.search(r"self_attn[._]o\b|attn1[._]to_out[._]0", name) and re.search(r"lora_(B|up)", name)
    return shape[0] if output and len(shape) == 2 else 0


def _vae(names: Shapes) -> str | None:
    first = next((s for n, s in names.items() if n.endswith(("decoder.conv1.weight", "decoder.conv_in.weight"))), None)
    if first is None:
        return None
    if len(first) != 5:
        return "a VAE of images"
    original = any(name.endswith("conv2.weight") and len(shape) == 5 for name, shape in names.items())
    diffusers = any(name.endswith("post_quant_conv.weight") for name in names)
    version = {16: " of Wan 2.1", 48: " of Wan 2.2 TI2V-5B"}.get(first[1], "") if original or diffusers else ""
    return f"a VAE{version}" if version else "a VAE of another video model"


def _text_encoder(names: Shapes) -> str | None:
    if not any(_T5_BIAS.search(name) for name in names) and not any("SelfAttention." in name for name in names):
        return None
    second = [name for name in names if _T5_SECOND.search(name)]
    shared = second and not any(_T5_BIAS.search(name) for name in second)
    return "a T5 text encoder" if shared else "a UMT5 text encoder"


def _language_model(names: Shapes) -> str | None:
    if not any(_LLM_LAYER.search(name) for name in names) or any("rm_head." in name for name in names):
        return None
    seeing = any("visual.blocks." in name and ".mlp.gate_proj" in name for name in names)
    width = next((shape[0] for name, shape in names.items() if name.endswith("layers.0.input_layernorm.weight")), 0)
    size = {2048: " 3B", 3584: " 7B"}.get(width, "")
    return f"a Qwen2.5-VL{size}" if seeing else "a language model"
