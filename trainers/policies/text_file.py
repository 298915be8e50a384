"""A text encoder and its tokenizer: a transformers folder, or the one file that ComfyUI users have."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..weights import load_full_state, require_complete

SPIECE = "spiece_model"
_BLOCK = re.compile(r"encoder\.block\.(\d+)\.")
_ATTENTION = "encoder.block.{}.layer.0.SelfAttention.{}.weight"
_BIAS = "relative_attention_bias"
_DENSE = "encoder.block.{}.layer.1.DenseReluDense.{}.weight"
_SCALES = (".scale_weight", ".weight_scale")
_ORIGINAL_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.weight")
_ORIGINAL = {
    "norm1": "layer.0.layer_norm",
    "pos_embedding.embedding": f"layer.0.SelfAttention.{_BIAS}",
    **{f"attn.{part}": f"layer.0.SelfAttention.{part}" for part in "qkvo"},
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}


def load_text_encoder(path: str | Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """A frozen UMT5EncoderModel in `dtype` and its tokenizer.

    path: a transformers folder, with the tokenizer in or beside it; or a .safetensors file of UMT5 by transformers' names,
    as ComfyUI has it, or by Wan's own. Weights may be plain, or in 8 bits with or without a scale for each. The tokenizer
    is the sentencepiece model in the file (`spiece_model`), else a folder `tokenizer` or `google/umt5-xxl` beside it.
    Raises UserError for what is neither.
    """
    path = Path(path)
    return _from_file(path, dtype) if path.is_file() else _from_folder(path, dtype)


def _from_folder(path: Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    from safetensors import SafetensorError
    from transformers import UMT5EncoderModel

    places = (path / "tokenizer", path.parent / "tokenizer")
    try:
        loaded = UMT5EncoderModel.from_pretrained(
            path, torch_dtype=dtype, local_files_only=True, output_loading_info=True
        )
        tokenizer = _tokenizer_at(next((place for place in places if place.is_dir()), path))
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"cannot load the text encoder from {path}: {error}") from error
    # In half precision transformers leaves some weights in float32.
    return require_complete(loaded, path).to(dtype).eval().requires_grad_(False), tokenizer


def _from_file(path: Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    from accelerate import init_empty_weights
    from safetensors import SafetensorError, safe_open
    from transformers import UMT5Config, UMT5EncoderModel

    try:
        with safe_open(path, "pt") as file:
            keys = set(file.keys())
            names = to_transformers(keys)
            _refuse_other_models(names.keys(), path)
            tokenizer = _tokenizer_of(file, keys, path)
            shapes = {name: tuple(file.get_slice(key).get_shape()) for name, key in names.items()}
            with init_empty_weights(include_buffers=False):
                model = UMT5EncoderModel(UMT5Config(**infer_config(shapes)))
            state = {name: _widened(file, key, keys, path, dtype) for name, key in names.items()}
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"cannot read the text encoder {path} ({error}); give a complete .safetensors file of UMT5-XXL"
        ) from error
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    load_full_state(model, state, path)
    # Two parameters of one tensor would become two tensors, of 2 GB each, on their way to another device.
    model.encoder.embed_tokens = model.shared
    return model.eval().requires_grad_(False), tokenizer


def to_transformers(keys: Iterable[str]) -> dict[str, str]:
    """The key of each of UMT5's encoder weights by transformers' name, whatever stands before all keys.

    Empty if the keys are neither transformers' nor those of Wan's own T5 (Wan-Video/Wan2.1, wan/modules/t5.py).
    """
    keys = list(keys)
    for first, rename in (("shared.weight", _kept), ("token_embedding.weight", _renamed)):
        prefix = next((key.removesuffix(first) for key in keys if key.endswith(first)), None)
        if prefix is not None:
            names = ((rename(key.removeprefix(prefix)), key) for key in keys if key.startswith(prefix))
            return {name: key for name, key in names if name}
    return {}


def _kept(key: str) -> str | None:
    return key if key.endswith(".weight") and key.startswith(("shared.", "encoder.")) else None


def _renamed(key: str) -> str | None:
    block = _ORIGINAL_BLOCK.fullmatch(key)
    if block:
        return f"encoder.block.{block[1]}.{_ORIGINAL[block[2]]}.weight" if block[2] in _ORIGINAL else None
    return {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}.get(key)


def infer_config(shapes: dict[str, tuple[int, ...]]) -> dict:
    """UMT5's configuration from the shapes of its encoder's weights, by transformers' names."""
    vocabulary, width = shapes["shared.weight"]
    buckets, heads = shapes[_ATTENTION.format(0, _BIAS)]
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": shapes[_ATTENTION.format(0, "q")][0] // heads,
        "d_ff": shapes[_DENSE.format(0, "wi_0")][0],
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
        """Raises UserError when the package is missing, RuntimeError when this is no such model."""
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise UserError(
                "a text encoder in one file needs the package sentencepiece (pip install sentencepiece)"
            ) from error
        self._processor = SentencePieceProcessor(model_proto=model, add_bos=False, add_eos=True)

    def __call__(self, texts: list[str], max_length: int = model_max_length, **_) -> SimpleNamespace:
        """`input_ids` and `attention_mask`, int64 [texts, max_length]; longer texts are cut and still end with </s>."""
        rows = [self._processor.encode(text) for text in texts]
        rows = [row if len(row) <= max_length else [*row[: max_length - 1], row[-1]] for row in rows]
        ids = torch.tensor([row + [0] * (max_length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (max_length - len(row)) for row in rows])
        return SimpleNamespace(input_ids=ids, attention_mask=mask)


def _tokenizer_of(file: Any, keys: set[str], path: Path) -> Any:
    inside = next((key for key in keys if key.endswith(SPIECE)), None)
    if inside:
        return SentencePiece(file.get_tensor(inside).numpy().tobytes())
    beside = (path.parent / "tokenizer", path.parent / "google" / "umt5-xxl")
    place = next((place for place in beside if place.is_dir()), None)
    if place is None:
        raise UserError(
            f"{path} has no tokenizer in it (`{SPIECE}`); give ComfyUI's umt5_xxl file, "
            f"or put the tokenizer of google/umt5-xxl into {beside[0]}"
        )
    return _tokenizer_at(place)


def _tokenizer_at(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _widened(file: Any, key: str, keys: set[str], path: Path, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`, times its scale where it has one."""
    tensor = file.get_tensor(key)
    module = key.removesuffix(".weight")
    scale = next((file.get_tensor(module + end) for end in _SCALES if module + end in keys), None)
    # Other 8-bit and 4-bit forms keep integers, or a scale for each block, and some rotate the weights first.
    if not tensor.is_floating_point() or (scale is not None and scale.numel() != 1):
        raise UserError(
            f"{path} is quantised in a way unknown here ({key} is {str(tensor.dtype).removeprefix('torch.')}); "
            "give umt5_xxl_fp16.safetensors or umt5_xxl_fp8_e4m3fn_scaled.safetensors"
        )
    return tensor.to(dtype) if scale is None else tensor.float().mul_(scale.float().item()).to(dtype)


def _refuse_other_models(names: Iterable[str], path: Path) -> None:
    names = set(names)
    remedy = "give umt5_xxl_fp16.safetensors or one like it"
    if not {"shared.weight", _ATTENTION.format(0, "q"), _ATTENTION.format(0, _BIAS)} <= names:
        raise UserError(f"{path} is no UMT5 text encoder, neither by transformers' names nor by Wan's own; {remedy}")
    if _DENSE.format(0, "wi_0") not in names or (
        _ATTENTION.format(1, "q") in names and _ATTENTION.format(1, _BIAS) not in names
    ):
        raise UserError(f"{path} is a T5 text encoder, and Wan reads UMT5; {remedy}")
