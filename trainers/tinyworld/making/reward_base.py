"""TinyWorld's stand-in for Qwen2.5-VL: the real class and folder layout, small and with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from ...rewards.names import released_name
from ...rewards.sequence import HEAD, REWARD_TOKEN, TAIL

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen2.5-VL's, in its order; the reward token follows them when a reward is loaded."""


def build_reward_base(
    folder: Path | str,
    vision_width: int = 96,
    vision_depth: int = 3,
    vision_heads: int = 4,
    vision_intermediate: int = 256,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    key_value_heads: int = 2,
    intermediate: int = 320,
    merges: int = 640,
    seed: int = 0,
) -> Path:
    """Write a complete tiny Qwen2.5-VL (`config.json`, `model.safetensors`, `tokenizer.json`) with random weights.

    The tokenizer is a byte-level BPE that is trained on the reward's instruction alone and may merge across words, so
    that the long instruction takes few tokens. Full attention is in the vision tower's last block.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer(merges)
    tokenizer.save(str(folder / "tokenizer.json"))
    token = tokenizer.token_to_id
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
        },
    )
    section = width // heads // 2
    first = section // 4
    second = (section - first) // 2
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "intermediate_size": intermediate,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "max_position_embeddings": 128000,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": depth,
        "rope_scaling": {"type": "mrope", "mrope_section": [first, second, section - first - second]},
        "tie_word_embeddings": True,
        "use_cache": False,
        "torch_dtype": "float32",
        "vocab_size": tokenizer.get_vocab_size(),
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
        "vision_token_id": token("<|vision_pad|>"),
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": vision_depth,
            "hidden_size": vision_width,
            "hidden_act": "silu",
            "num_heads": vision_heads,
            "intermediate_size": vision_intermediate,
            "out_hidden_size": width,
            "in_channels": 3,
            "in_chans": 3,
            "patch_size": 14,
            "spatial_patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "tokens_per_second": 2,
            "fullatt_block_indexes": [vision_depth - 1],
        },
    }
    _write(folder / "config.json", config)
    _write_random_weights(folder, seed)
    return folder


def _train_tokenizer(merges: int):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = (HEAD + TAIL).replace(REWARD_TOKEN, "\0")
    for special in SPECIAL_TOKENS:
        text = text.replace(special, "\0")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + merges, min_frequency=1, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([piece for piece in text.split("\0") if piece] * 2, trainer)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL_TOKENS])
    return tokenizer


def _write_random_weights(folder: Path, seed: int) -> None:
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(AutoConfig.from_pretrained(folder, local_files_only=True))
        model.float()
        weights = {}
        for name, value in model.state_dict().items():
            if name.startswith("lm_head"):
                continue
            name = name.removeprefix("model.")
            name = released_name(name if name.startswith(("visual.", "language_model.")) else "language_model." + name)
            if value.ndim > 1:
                fan_in = value.shape[1:].numel()
                std = 0.5 if "embed_tokens" in name else fan_in**-0.5
                value = torch.randn(value.shape) * std
            weights[name] = value.contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
