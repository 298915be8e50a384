"""A text encoder and its tokenizer: a transformers folder, or the one file that ComfyUI users have."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..modelfiles.inspection import describe
from ..modelfiles.names import by_plain_name
from ..modelfiles.places import read_json, weight_files
from ..modelfiles.weights import Weights, open_weights
from ..weights import load_full_state
from .model_config import TextConfig, check_agreement, check_config, count_layers

REMEDY = "give umt5_xxl_fp16.safetensors or umt5_xxl_fp8_e4m3fn_scaled.safetensors"
SPIECE = "spiece_model"
MAX_DISTANCE = 128  # tokens; of UMT5, where a configuration has no other
_BLOCK = re.compile(r"encoder\.block\.(\d{1,9})\.")
_ATTENTION = "encoder.block.{}.layer.0.SelfAttention.{}.weight"
_BIAS = "relative_attention_bias"
_DENSE = "encoder.block.{}.layer.1.DenseReluDense.{}.weight"
_NEEDED = ("shared.weight", _ATTENTION.format(0, "q"), _ATTENTION.format(0, _BIAS), _DENSE.format(0, "wi_0"))
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

_LLAMA_BLOCK = re.compile(r"enc\.blk\.(\d+)\.(.+)\.weight")
_LLAMA = {
    "attn_norm": "layer.0.layer_norm",
    "attn_rel_b": f"layer.0.SelfAttention.{_BIAS}",
    **{f"attn_{part}": f"layer.0.SelfAttention.{part}" for part in "qkvo"},
    "ffn_norm": "layer.1.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
}


def load_text_encoder(path: str | Path, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    """A frozen UMT5EncoderModel in `dtype` and its tokenizer.

    path: a transformers folder, with the tokenizer in or beside it; or a file (.safetensors, one shard of several,
    .pth, .gguf) of UMT5 by transformers' names, as ComfyUI has it, by Wan's own or by llama.cpp's. Weights may be
    quantised as `Weights.require_readable` says. The tokenizer of a file is the sentencepiece model in it
    (`spiece_model`, or that of a GGUF file), else a folder `tokenizer` or `google/umt5-xxl` beside it. Raises UserError
    for anything else.
    """
    from accelerate import init_empty_weights
    from transformers import UMT5Config, UMT5EncoderModel

    path = Path(path)
    stated = TextConfig()
    if os.path.isdir(path):
        stated = check_config(TextConfig, read_json(path / "config.json"), path / "config.json")
    with open_weights(path, "the text encoder", REMEDY) as weights:
        names = to_transformers(weights.keys, path)
        _refuse_other_models(names, weights, path)
        weights.require_readable(names.values(), path, REMEDY)
        config = infer_config({name: weights.shape(key) for name, key in names.items()}, stated, path)
        tokenizer = _tokenizer_in_folder(path) if os.path.isdir(path) else _tokenizer_of_file(weights, path)
        if len(tokenizer) > config["vocab_size"]:
            raise UserError(
                f"the tokenizer of {path} has {len(tokenizer)} tokens, and the text encoder {config['vocab_size']}: it "
                "is that of another model; give the tokenizer of google/umt5-xxl"
            )
        with init_empty_weights(include_buffers=False):
            model = UMT5EncoderModel(UMT5Config(**config))
        state = {name: weights.read(key, dtype) for name, key in names.items()}
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    load_full_state(model, state, path)
    # Two parameters of one tensor would become two tensors, of 2 GB each, on their way to another device.
    model.encoder.embed_tokens = model.shared
    return model.eval().requires_grad_(False), tokenizer


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of the text encoder at `path` (see `load_text_encoder`), without its weights. Raises UserError."""
    path = Path(path)
    if os.path.isdir(path):
        return _tokenizer_in_folder(path)
    with open_weights(path, "the text encoder", REMEDY) as weights:
        return _tokenizer_of_file(weights, path)


def text_encoder_files(path: str | Path) -> list[Path]:
    """All files that an embedding of the text encoder at `path` depends on: weights, configuration, tokenizer."""
    path = Path(path)
    places = [*([path] if os.path.isdir(path) else []), *_tokenizer_places(path)]
    described = [file for place in places for end in ("json", "model") for file in sorted(place.glob(f"*.{end}"))]
    return [*weight_files(path, REMEDY), *dict.fromkeys(file for file in described if os.path.isfile(file))]


def to_transformers(keys: Iterable[str], path: Path) -> dict[str, str]:
    """The key of each of UMT5's encoder weights by transformers' name, without prefixes and wrappers.

    Empty if the keys are neither transformers', nor those of Wan's own T5 (Wan-Video/Wan2.1, wan/modules/t5.py), nor
    llama.cpp's. Raises UserError when two keys have the same name.
    """
    keys = by_plain_name(keys, path)
    for first, rename in (
        ("shared.weight", _kept),
        ("encoder.embed_tokens.weight", _kept),
        ("token_embedding.weight", _renamed),
        ("token_embd.weight", _of_llama_cpp),
    ):
        prefix = next((key.removesuffix(first) for key in keys if key.endswith(first)), None)
        if prefix is not None:
            names = ((rename(key.removeprefix(prefix)), keys[key]) for key in keys if key.startswith(prefix))
            return {name: key for name, key in names if name}
    return {}


def _kept(key: str) -> str | None:
    if key == "encoder.embed_tokens.weight":
        return "shared.weight"  # one tensor in UMT5
    return key if key.endswith(".weight") and key.startswith(("shared.", "encoder.")) else None


def _renamed(key: str) -> str | None:
    block = _ORIGINAL_BLOCK.fullmatch(key)
    if block:
        return f"encoder.block.{block[1]}.{_ORIGINAL[block[2]]}.weight" if block[2] in _ORIGINAL else None
    return {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}.get(key)


def _of_llama_cpp(key: str) -> str | None:
    block = _LLAMA_BLOCK.fullmatch(key)
    if block:
        return f"encoder.block.{block[1]}.{_LLAMA[block[2]]}.weight" if block[2] in _LLAMA else None
    return {"token_embd.weight": "shared.weight", "enc.output_norm.weight": "encoder.final_layer_norm.weight"}.get(key)


def infer_config(shapes: dict[str, tuple[int, ...]], stated: TextConfig, path: object) -> dict[str, Any]:
    """UMT5's configuration from the shapes of its encoder's weights, by transformers' names.

    `stated` gives what shapes do not show. Raises UserError when it says other numbers, or for shapes of no UMT5.
    """
    matrices = [shapes[name] for name in _NEEDED]
    if any(len(shape) != 2 for shape in matrices):
        raise UserError(f"{path} is not a UMT5 text encoder: its weights have other dimensions; {REMEDY}")
    (vocabulary, width), (queries, _), (buckets, heads), (inner, _) = matrices
    if queries % heads:
        raise UserError(f"{path} has {queries} channels, which {heads} attention heads cannot share evenly; {REMEDY}")
    distance = stated.relative_attention_max_distance or MAX_DISTANCE
    # Half of the buckets are for each direction, and half of those for single positions.
    if buckets < 4 or buckets % 2 or distance <= buckets // 4:
        raise UserError(
            f"{path} has {buckets} buckets of relative positions up to {distance} tokens; an even number from 4 and a "
            f"distance above {buckets // 4} are expected, so {REMEDY}"
        )
    found = {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": queries // heads,
        "d_ff": inner,
        "num_layers": count_layers(shapes, _BLOCK, path),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
    }
    check_agreement(stated, found, path)
    beyond = {"layer_norm_epsilon": stated.layer_norm_epsilon}
    found["relative_attention_max_distance"] = distance
    fixed = {"feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "pad_token_id": 0, "eos_token_id": 1}
    return found | fixed | {name: value for name, value in beyond.items() if value is not None}


class SentencePiece:
    """A sentencepiece model called as a transformers tokenizer is: ids end with </s>, then zeros."""

    model_max_length = 512

    def __init__(self, model: bytes) -> None:
        """Raises UserError when the package is missing, RuntimeError or ValueError when this is no such model."""
        if not model:  # the package takes no bytes for a model that is loaded later
            raise ValueError("it is empty")
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise UserError(
                "a text encoder in one file needs the package sentencepiece (pip install sentencepiece)"
            ) from error
        self._processor = SentencePieceProcessor(model_proto=model, add_bos=False, add_eos=True)

    def __len__(self) -> int:
        return self._processor.get_piece_size()

    def __call__(self, texts: list[str], max_length: int = model_max_length, **_) -> SimpleNamespace:
        """`input_ids` and `attention_mask`, int64 [texts, max_length]; longer texts are cut and still end with </s>."""
        rows = [self._processor.encode(text) for text in texts]
        rows = [row if len(row) <= max_length else [*row[: max_length - 1], row[-1]] for row in rows]
        ids = torch.tensor([row + [0] * (max_length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (max_length - len(row)) for row in rows])
        return SimpleNamespace(input_ids=ids, attention_mask=mask)


def _tokenizer_of_file(weights: Weights, path: Path) -> Any:
    inside = next((key for key in weights.keys if key.endswith(SPIECE)), None)
    if inside:
        try:
            return SentencePiece(weights.raw(inside).numpy().tobytes())
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"the tokenizer in {path} ({inside}) is broken: {error}; {REMEDY}") from error
    beside = _tokenizer_places(path)
    place = next((place for place in beside if os.path.isdir(place)), None)
    if place is None:
        raise UserError(
            f"{path} has no tokenizer in it (`{SPIECE}`); give ComfyUI's umt5_xxl file, "
            f"or put the tokenizer of google/umt5-xxl into {beside[0]}"
        )
    return _tokenizer_at(place)


def _tokenizer_in_folder(folder: Path) -> Any:
    return _tokenizer_at(next((place for place in _tokenizer_places(folder) if os.path.isdir(place)), folder))


def _tokenizer_places(path: Path) -> tuple[Path, Path]:
    """Where the tokenizer of a text encoder's folder or file may lie."""
    if os.path.isdir(path):
        return path / "tokenizer", path.parent / "tokenizer"
    return path.parent / "tokenizer", path.parent / "google" / "umt5-xxl"


def _tokenizer_at(folder: Path) -> Any:
    """The tokenizer in a folder, of a class of transformers: code in the folder is never run. Raises UserError."""
    from transformers import AutoTokenizer

    try:
        for entry in folder.iterdir():
            if entry.exists() and not entry.is_file() and not entry.is_dir():
                raise ValueError(f"{entry.name} is not a regular file")
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if type(tokenizer.model_max_length) is not int or tokenizer.model_max_length < 1:
            raise ValueError(f"model_max_length is {tokenizer.model_max_length!r}")
    except Exception as error:  # the tokenizers package raises plain exceptions
        raise UserError(
            f"cannot load the tokenizer from {folder} ({error}); give the tokenizer of google/umt5-xxl"
        ) from error
    return tokenizer


def _refuse_other_models(names: dict[str, str], weights: Weights, path: Path) -> None:
    needed = {"shared.weight", _ATTENTION.format(0, "q"), _ATTENTION.format(0, _BIAS)}
    if not needed <= names.keys():
        what = describe({key: weights.shape(key) for key in weights.keys})
        known = f" but {what}" if what and "UMT5" not in what else ""
        names_of = "by transformers' names, Wan's own or llama.cpp's"
        raise UserError(f"{path} is no UMT5 text encoder {names_of}{known}; {REMEDY}")
    second = _ATTENTION.format(1, "q") in names and _ATTENTION.format(1, _BIAS) not in names
    if _DENSE.format(0, "wi_0") not in names or second:
        raise UserError(f"{path} is a T5 text encoder, and Wan uses UMT5; {REMEDY}")
