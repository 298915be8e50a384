"""GGUF files: quantised transformers as ComfyUI-GGUF makes them, and T5 encoders as llama.cpp makes them."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

TYPES = ("F32", "F16", "BF16", "Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
TOKENIZER = "spiece_model"
"""The key under which the tokenizer in a file's header is given, as ComfyUI's text encoders have it."""
_TOKENS = "tokenizer.ggml.tokens"
_SHAPE = "comfy.gguf.orig_shape."  # of tensors with more dimensions than GGUF has
_AT_ONCE = 2**24  # numbers that are dequantised together, so that float32 copies stay below 1 GB


@dataclass(frozen=True)
class _Tensor:
    """Where a tensor lies: `shape` with the rows last to first, `kind` by ggml's number, `place` in bytes."""

    shape: tuple[int, ...]
    kind: int
    place: int


class GgufFile:
    """An open GGUF file; `read` dequantises by the package gguf.

    The header is read here: the package's reader takes 15 s for the vocabulary of UMT5, and counts to any length that
    a damaged header says.
    """

    def __init__(self, path: Path, remedy: str) -> None:
        """Raises UserError for a damaged file and when the package is missing."""
        try:
            from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        except ImportError as error:
            raise UserError(f"{path} is a GGUF file, which needs the package gguf (pip install gguf)") from error
        self._path, self._remedy = path, remedy
        self._sizes, self._kinds = GGML_QUANT_SIZES, GGMLQuantizationType
        try:
            self._content = np.memmap(path, np.uint8, "r")
            self._fields, self._tensors = _read_header(memoryview(self._content))
            self._shapes = {name: self._shape(name) for name in self._tensors}
            if _TOKENS in self._fields:
                # Its number of tokens: the bytes are made when it is read.
                self._shapes[TOKENIZER] = (len(self._fields[_TOKENS]),)
        except (ValueError, struct.error, UnicodeDecodeError, TypeError, OverflowError, KeyError) as error:
            raise UserError(f"cannot read {path} ({error}); {remedy}, downloaded to its end") from error
        self.keys = [*self._tensors, *([TOKENIZER] if _TOKENS in self._fields else [])]
        self.metadata: Mapping[str, str] = {}

    def shape(self, key: str) -> tuple[int, ...]:
        return self._shapes[key]

    def dtype(self, key: str) -> str:
        return "U8" if key == TOKENIZER else self._kinds(self._tensors[key].kind).name

    def read(self, key: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor in `dtype` (float32); the tokenizer as uint8. Raises UserError for a damaged file."""
        try:
            if key == TOKENIZER:
                return torch.frombuffer(bytearray(self._tokenizer()), dtype=torch.uint8)
            return self._dequantised(key, dtype or torch.float32).reshape(self._shapes[key])
        except Exception as error:  # the package raises almost anything
            raise UserError(f"cannot read {key} of {self._path} ({error}); {self._remedy}") from error

    def _shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor. Raises ValueError for one whose numbers do not fit it, or lie beyond the file."""
        tensor = self._tensors[name]
        stated = self._fields.get(_SHAPE + name)
        shape = tuple(reversed(tensor.shape)) if stated is None else tuple(map(int, stated))
        count, (numbers, size) = math.prod(tensor.shape), self._sizes[self._kinds(tensor.kind)]
        if math.prod(shape) != count or any(length < 0 for length in shape) or tensor.shape[0] % numbers:
            raise ValueError(f"{name} has {count} numbers and the shape {shape}")
        if tensor.place + count // numbers * size > len(self._content):
            raise ValueError(f"{name} ends after the file")
        return shape

    def _dequantised(self, name: str, dtype: torch.dtype) -> Tensor:
        from gguf.quants import dequantize

        tensor, kind = self._tensors[name], self._kinds(self._tensors[name].kind)
        numbers, size = self._sizes[kind]
        columns, count = tensor.shape[0], math.prod(tensor.shape)
        stored = self._content[tensor.place : tensor.place + count // numbers * size].reshape(count // columns, -1)
        found = torch.empty(count // columns, columns, dtype=dtype)
        step = max(1, _AT_ONCE // columns)
        for start in range(0, len(stored), step):
            with np.errstate(all="ignore"):  # what is damaged is found in the result
                part = dequantize(np.array(stored[start : start + step]), kind)
            found[start : start + step] = torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32))
        return found

    def _tokenizer(self) -> bytes:
        """The sentencepiece model of which llama.cpp's converter made the entries `tokenizer.ggml.*`."""

        def value(name: str, otherwise: Any) -> Any:
            return self._fields.get(f"tokenizer.ggml.{name}", otherwise)

        if value("model", None) != "t5":
            raise ValueError(f"its tokenizer is `{value('model', None)}`, t5 was expected")
        tokens = value("tokens", [])
        scores, types = value("scores", [0.0] * len(tokens)), value("token_type", [1] * len(tokens))
        ids = {name: value(f"{name}_token_id", -1) for name in ("unknown", "bos", "eos", "padding")}
        trainer = {3: 1, 4: len(tokens), 35: int(6 in types)} | dict(zip((40, 41, 42, 43), ids.values(), strict=True))
        normalizer = _bytes_field(1, b"nmt_nfkc") + _bytes_field(2, bytes(value("precompiled_charsmap", [])))
        normalizer += _integers(
            {3: int(value("add_space_prefix", True)), 4: int(value("remove_extra_whitespaces", True)), 5: 1}
        )
        pieces = (
            _bytes_field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _integers({3: kind})
            for text, score, kind in zip(tokens, scores, types, strict=True)
        )
        return _messages(1, pieces) + _bytes_field(2, _integers(trainer)) + _bytes_field(3, normalizer)


# How a header has its values, by the number of their type.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _LIST, _DIMENSIONS = 8, 9, 4
_VERSIONS = (2, 3)


def _read_header(content: memoryview) -> tuple[dict[str, Any], dict[str, _Tensor]]:
    """The entries and the tensors of a GGUF file. Format: docs/gguf.md of ggml-org/ggml.

    Raises ValueError or struct.error for another file, and for lengths that lead out of it.
    """
    place = 4

    def numbers(form: str, count: int = 1) -> tuple:
        nonlocal place
        size = struct.calcsize(f"<{form}") * count
        if size > len(content) - place:
            raise ValueError("its header ends after the file")
        found = struct.unpack_from(f"<{count}{form}", content, place)
        place += size
        return found

    def text() -> str:
        nonlocal place
        (length,) = numbers("Q")
        if length > len(content) - place:
            raise ValueError("its header ends after the file")
        place += length
        return bytes(content[place - length : place]).decode()

    def value(kind: int) -> Any:
        if kind == _STRING:
            return text()
        if kind not in _NUMBERS:
            raise ValueError(f"its header has a value of the unknown type {kind}")
        return numbers(_NUMBERS[kind])[0]

    def entry(kind: int) -> Any:
        if kind != _LIST:
            return value(kind)
        ((inner,), (count,)) = numbers("I"), numbers("Q")
        if inner in _NUMBERS:
            return list(numbers(_NUMBERS[inner], count))
        if 8 * count > len(content) - place:  # every text begins with its length
            raise ValueError("its header ends after the file")
        return [value(inner) for _ in range(count)]

    (version,) = numbers("I")
    if version not in _VERSIONS:
        raise ValueError(f"it is of version {version}; {_VERSIONS} are read")
    tensors, entries = numbers("Q", 2)
    fields = {text(): entry(numbers("I")[0]) for _ in range(entries)}
    found: dict[str, _Tensor] = {}
    for _ in range(tensors):
        name, (dimensions,) = text(), numbers("I")
        if not 1 <= dimensions <= _DIMENSIONS:
            raise ValueError(f"{name[:80]} has {dimensions} dimensions")
        shape, (kind,), (offset,) = numbers("Q", dimensions), numbers("I"), numbers("Q")
        if name in found or not all(shape):
            raise ValueError(f"{name[:80]} is empty, or there twice")
        found[name] = _Tensor(shape, kind, offset)
    alignment = int(fields.get("general.alignment", 32))
    if alignment < 1:
        raise ValueError(f"its alignment is {alignment}")
    start = -(-place // alignment) * alignment
    return fields, {name: replace(tensor, place=start + tensor.place) for name, tensor in found.items()}


# Protocol buffers' wire format, of sentencepiece_model.proto (google/sentencepiece).


def _varint(value: int) -> bytes:
    value &= 2**64 - 1  # negative numbers have 64 bits
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _integers(values: Mapping[int, int]) -> bytes:
    return b"".join(_varint(field << 3) + _varint(int(value)) for field, value in values.items())


def _bytes_field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _messages(field: int, contents: Iterable[bytes]) -> bytes:
    return b"".join(_bytes_field(field, content) for content in contents)
