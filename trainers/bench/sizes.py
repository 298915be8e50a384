"""Configurations of the published models, by the arguments of their classes. Data only.

Sources: config.json of Wan-AI/Wan2.1-VACE-1.3B-diffusers and Wan2.1-VACE-14B-diffusers, google/umt5-xxl and
Qwen/Qwen2.5-VL-3B-Instruct. Phantom has the transformer of Wan 2.1's text-to-video model; AutoencoderKLWan's defaults
are Wan 2.1's VAE.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from ..config import PolicyKind
from ..tinyworld.models import PHANTOM, VACE, VAE

Size = Literal["tiny", "1.3b", "14b"]
SIZES: tuple[Size, ...] = get_args(Size)
"""`tiny` is TinyWorld, with its own weights."""

_WAN: dict[str, Any] = {
    "patch_size": [1, 2, 2],
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "rope_max_seq_len": 1024,
}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "1.3b": {**_WAN, "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    "14b": {**_WAN, "num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40},
}
CONTROL: dict[str, dict[str, Any]] = {
    "1.3b": {"vace_layers": list(range(0, 30, 2)), "vace_in_channels": 96},
    "14b": {"vace_layers": list(range(0, 40, 5)), "vace_in_channels": 96},
}
"""What VACE has beside."""

TEXT_ENCODER: dict[str, Any] = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}

SHORT_TEXT_ENCODER = TEXT_ENCODER | {"vocab_size": 512, "num_layers": 1}
"""For trials in which encoding texts does not count: one layer of the same width, 0.3 GB in place of 11."""

REWARD: dict[str, Any] = {
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 11008,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128000,
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
    "sliding_window": 32768,
    "max_window_layers": 70,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": True,
    "vocab_size": 151666,
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "hidden_act": "silu",
        "num_heads": 16,
        "intermediate_size": 3420,
        "out_hidden_size": 2048,
        "in_channels": 3,
        "in_chans": 3,
        "patch_size": 14,
        "spatial_patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "tokens_per_second": 2,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}
"""The vocabulary is that of the tokenizer with the reward token, to which the embedding is resized."""


def transformer_config(size: Size, kind: PolicyKind) -> dict[str, Any]:
    """Arguments of the transformer's class in diffusers."""
    if size == "tiny":
        return VACE if kind == "vace" else PHANTOM
    return TRANSFORMERS[size] | (CONTROL[size] if kind == "vace" else {})


def vae_config(size: Size) -> dict[str, Any]:
    """Arguments of AutoencoderKLWan."""
    return VAE if size == "tiny" else {}
