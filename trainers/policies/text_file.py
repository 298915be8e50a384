"""A text encoder and its tokenizer: a transformers folder, or the one file that ComfyUI users have."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError

SPIECE = "spiece_model"
_BLOCK = re.compile(r"encoder\.block\.(\d+)\.")
_FIRST = "encoder.block.0.layer.{}"
_SCALES = (".scale_weight", ".weight_scale")
_NOT_WEIGHTS = (*_SCALES, ".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8", SPIECE)


def load_text_encoder(path: str | Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """A frozen UMT5EncoderModel and its tokenizer.

    path: a folder, with the tokenizer in or beside it; or a .safetensors file as ComfyUI has it: transformers' names, the
    sentencepiece model in `spiece_model`, weights plain or in 8 bits with scales (these are widened to `dtype`).
    Raises UserError for what is neither.
    """
    path = Path(path)
    return _from_file(path, dtype) if path.is_file() else _from_folder(path, dtype)


def _from_folder(path: Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    from transformers import AutoTokenizer, UMT5EncoderModel

    places = (path / "tokenizer", path.parent / "tokenizer")
    tokenizer = next((place for place in places if place.is_dir()), path)
    try:
        model = UMT5EncoderModel.from_pretrained(path, local_files_only=True)
        return model.to(dtype).eval().requires_grad_(False), AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"cannot load the text encoder from {path}: {error}") from error


def _from_file(path: Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    from accelerate import init_empty_weights
    from safetensors import SafetensorError, safe_open
    from transformers import UMT5Config, UMT5EncoderModel

    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            _refuse_other_files(names, path)
            weights = [name for name in names if not name.endswith(_NOT_WEIGHTS)]
            config = UMT5Config(**infer_config({name: tuple(file.get_slice(name).get_shape()) for name in weights}))
            with init_empty_weights(include_buffers=False):
                model = UMT5EncoderModel(config)
            state = {name: _widened(file, name, names, dtype) for name in weights}
            state["encoder.embed_tokens.weight"] = state["shared.weight"]
            model.load_state_dict(state, assign=True)
            tokenizer = SentencePiece(file.get_tensor(SPIECE).numpy().tobytes())
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read the text encoder {path} ({error}); give a complete .safetensors file of UMT5-XXL") from error
    return model.eval().requires_grad_(False), tokenizer


def infer_config(shapes: dict[str, tuple[int, ...]]) -> dict:
    """UMT5's configuration from the shapes of its encoder's weights, by transformers' names."""
    vocabulary, width = shapes["shared.weight"]
    buckets, heads = shapes[_FIRST.format("0.SelfAttention.relative_attention_bias.weight")]
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": shapes[_FIRST.format("0.SelfAttention.q.weight")][0] // heads,
        "d_ff": shapes[_FIRST.format("1.DenseReluDense.wi_0.weight")][0],
        "num_layers": 1 + max(int(match[1]) for name in shapes if (match := _BLOCK.match(name))),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }


class SentencePiece:
    """A sentencepiece model called as a transformers tokenizer is: ids end with </s>, then zeros."""

    model_max_length = 512

    def __init__(self, model: bytes) -> None:
        """Raises UserError when the package or the model is missing."""
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise UserError("a text encoder in one file needs the package sentencepiece (pip install sentencepiece)") from error
        self._processor = SentencePieceProcessor(model_proto=model, add_bos=False, add_eos=True)

    def __call__(self, texts: list[str], max_length: int = model_max_length, **_) -> SimpleNamespace:
        """`input_ids` and `attention_mask`, int64 [texts, max_length]; longer texts are cut and still end with </s>."""
        rows = [self._processor.encode(text) for text in texts]
        rows = [row if len(row) <= max_length else [*row[: max_length - 1], row[-1]] for row in rows]
        ids = torch.tensor([row + [0] * (max_length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (max_length - len(row)) for row in rows])
        return SimpleNamespace(input_ids=ids, attention_mask=mask)


def _widened(file, name: str, names: set[str], dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`, times its scale where it has one."""
    tensor = file.get_tensor(name)
    module = name.removesuffix(".weight")
    scale = next((module + end for end in _SCALES if module + end in names), None)
    return tensor.to(dtype) if scale is None else (tensor.float() * file.get_tensor(scale).float()).to(dtype)


def _refuse_other_files(names: set[str], path: Path) -> None:
    if "shared.weight" not in names or _FIRST.format("0.SelfAttention.q.weight") not in names:
        raise UserError(f"{path} is no UMT5 text encoder by transformers' names; give umt5_xxl_fp16.safetensors or one like it")
    if SPIECE not in names:
        raise UserError(f"{path} has no tokenizer in it (`{SPIECE}`); give ComfyUI's umt5_xxl file, or a transformers folder with tokenizer/")
