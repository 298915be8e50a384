"""A base model in one file, as ComfyUI's `text_encoders` have Qwen2.5-VL: its configuration is that of the shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..modelfiles.inspection import describe
from ..modelfiles.weights import open_weights
from ..weights import load_full_state
from .names import inner_name

REMEDY = "give a Qwen2.5-VL: its folder, or a file such as qwen_2.5_vl_fp16.safetensors"
TOKENIZER = "tokenizer.json"
TOKENS_PER_SECOND = 2.0
# Of every Qwen2.5-VL: channels of a head, of the language model and of the tower, and where the tower sees all patches.
HEAD, TOWER_HEAD = 128, 80
ROPE = [16, 24, 24]
FULL_ATTENTION = [7, 15, 23, 31]
_NEEDED = (
    "language_model.embed_tokens.weight",
    "language_model.layers.0.self_attn.q_proj.weight",
    "language_model.layers.0.self_attn.k_proj.weight",
    "language_model.layers.0.mlp.gate_proj.weight",
    "visual.patch_embed.proj.weight",
    "visual.blocks.0.mlp.gate_proj.weight",
    "visual.merger.mlp.2.weight",
)


def load_base_file(path: Path, dtype: torch.dtype, attention: str) -> nn.Module:
    """The Qwen2_5_VLForConditionalGeneration of a file of weights, without a language head, in `dtype`.

    Raises UserError when the file holds something else or lacks weights.
    """
    from accelerate import init_empty_weights
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    with open_weights(path, "the base model", REMEDY) as weights:
        keys = {inner_name(key): key for key in weights.keys}
        keys = {name: key for name, key in keys.items() if name.startswith(("language_model.", "visual."))}
        if missing := next((name for name in _NEEDED if name not in keys), None):
            what = describe({key: weights.shape(key) for key in weights.keys}) or "another file"
            raise UserError(f"{path} is {what}, and lacks {missing} of a Qwen2.5-VL; {REMEDY}")
        weights.require_readable(keys.values(), path, REMEDY)
        config = infer_config({name: weights.shape(key) for name, key in keys.items()}, path)
        with init_empty_weights(include_buffers=False):
            model = Qwen2_5_VLForConditionalGeneration._from_config(
                Qwen2_5_VLConfig(**config), attn_implementation=attention
            )
        state = {name: weights.read(key, dtype) for name, key in keys.items()}
    state["lm_head.weight"] = state["language_model.embed_tokens.weight"]
    names = {inner_name(name): name for name in model.state_dict()}
    load_full_state(model, {names.get(name, name): value for name, value in state.items()}, path)
    model.tie_weights()
    return model


def infer_config(shapes: Mapping[str, tuple[int, ...]], path: object) -> dict[str, Any]:
    """The arguments of Qwen2_5_VLConfig by the shapes of the weights, named as in `RewardModel`.

    Raises UserError for shapes of no Qwen2.5-VL.
    """
    vocabulary, width = shapes[_NEEDED[0]]
    queries, keys, inner = (shapes[name][0] for name in _NEEDED[1:4])
    channels, _, *patch = shapes[_NEEDED[4]]
    if queries % HEAD or keys % HEAD or queries != width or channels % TOWER_HEAD or patch != [2, 14, 14]:
        raise UserError(f"{path} has weights of other shapes than a Qwen2.5-VL; {REMEDY}")
    depth = _count(shapes, r"visual\.blocks\.(\d+)\.")
    rope = {"type": "mrope", "rope_type": "default", "mrope_section": ROPE}
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": _count(shapes, r"language_model\.layers\.(\d+)\."),
        "num_attention_heads": queries // HEAD,
        "num_key_value_heads": keys // HEAD,
        "max_position_embeddings": 128_000,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": rope,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "vision_config": {
            "depth": depth,
            "hidden_size": channels,
            "num_heads": channels // TOWER_HEAD,
            "intermediate_size": shapes[_NEEDED[5]][0],
            "out_hidden_size": shapes[_NEEDED[6]][0],
            "fullatt_block_indexes": [index for index in FULL_ATTENTION if index < depth],
            "window_size": 112,
            "tokens_per_second": int(TOKENS_PER_SECOND),
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }


def find_tokenizer(path: Path, places: Iterable[Path]) -> Path:
    """The folder with the tokenizer of the base model in the file `path`: beside it, or one of `places`.

    Raises UserError when there is none.
    """
    for folder in (path.with_suffix(""), path.parent, *places):
        if (folder / TOKENIZER).is_file():
            return folder
    raise UserError(
        f"{path} has no tokenizer; put {TOKENIZER} of Qwen/Qwen2.5-VL-3B-Instruct beside it or into the reward's folder"
    )


def _count(shapes: Iterable[str], pattern: str) -> int:
    return 1 + max(int(match[1]) for name in shapes if (match := re.match(pattern, name)))
