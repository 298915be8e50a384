"""GGUF files: quantised transformers as ComfyUI-GGUF makes them, and T5 encoders as llama.cpp makes them."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

TYPES = ("F32", "F16", "BF16", "Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
TOKENIZER = "spiece_model"
"""The key under which the tokenizer in a file's header is given, as ComfyUI's text encoders have it."""
_SHAPE = "comfy.gguf.orig_shape."  # of tensors with more dimensions than GGUF has
_AT_ONCE = 2**24  # numbers that are dequantised together, so that float32 copies stay below 1 GB


class GgufFile:
    """An open GGUF file; `read` dequantises by the package gguf."""

    def __init__(self, path: Path, remedy: str) -> None:
        """Raises UserError for a damaged file and when the package is missing."""
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise UserError(f"{path} is a GGUF file, which needs the package gguf (pip install gguf)") from error
        self._path, self._remedy = path, remedy
        try:
            # The reader would count to any length that a damaged header says.
            _check_header(path)
            reader = GGUFReader(path)
            self._fields = reader.fields
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
            self._shapes = {name: self._shape(tensor) for name, tensor in self._tensors.items()}
        except Exception as error:  # the reader raises almost anything for a damaged file
            raise UserError(f"cannot read {path} ({error}); {remedy}, downloaded to its end") from error
        self.keys = [*self._tensors, *([TOKENIZER] if "tokenizer.ggml.tokens" in self._fields else [])]
        self.metadata: Mapping[str, str] = {}

    def shape(self, key: str) -> tuple[int, ...]:
        return self._shapes[key]

    def dtype(self, key: str) -> str:
        return "U8" if key == TOKENIZER else self._tensors[key].tensor_type.name

    def read(self, key: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor in `dtype` (float32); the tokenizer as uint8. Raises UserError for a damaged file."""
        try:
            if key == TOKENIZER:
                return torch.frombuffer(bytearray(self._tokenizer()), dtype=torch.uint8)
            return self._dequantised(self._tensors[key], dtype or torch.float32).reshape(self._shapes[key])
        except Exception as error:  # as above
            raise UserError(f"cannot read {key} of {self._path} ({error}); {self._remedy}") from error

    def _shape(self, tensor: Any) -> tuple[int, ...]:
        stated = self._value(_SHAPE + tensor.name)
        shape = tuple(map(int, reversed(tensor.shape) if stated is None else stated))
        if any(size < 0 for size in shape) or np.prod(shape, dtype=object) != tensor.n_elements:
            raise ValueError(f"{tensor.name} has {tensor.n_elements} numbers and the shape {shape}")
        return shape

    def _dequantised(self, tensor: Any, dtype: torch.dtype) -> Tensor:
        from gguf.quants import dequantize

        rows = tensor.data.reshape(-1, tensor.data.shape[-1])
        if tensor.tensor_type.name == "F32":
            return torch.from_numpy(np.array(rows)).to(dtype)
        found = torch.empty(tensor.n_elements, dtype=dtype).view(len(rows), -1)
        step = max(1, _AT_ONCE // max(1, found.shape[1]))
        for start in range(0, len(rows), step):
            with np.errstate(all="ignore"):  # what is damaged is found in the result
                part = dequantize(rows[start : start + step], tensor.tensor_type)
            found[start : start + step] = torch.from_numpy(np.ascontiguousarray(part, dtype=np.float32))
        return found

    def _value(self, name: str) -> Any:
        field = self._fields.get(name)
        return None if field is None else field.contents()

    def _tokenizer(self) -> bytes:
        """The sentencepiece model of which llama.cpp's converter made the entries `tokenizer.ggml.*`."""

        def value(name: str, otherwise: Any) -> Any:
            found = self._value(f"tokenizer.ggml.{name}")
            return otherwise if found is None else found

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


# Bytes of a value in a header by its type's number; 8 is a string and 9 a list.
_VALUE_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _LIST, _DIMENSIONS = 8, 9, 4


def _check_header(path: Path) -> None:
    """Raises ValueError or struct.error for lengths that lead out of the file. Format: ggml-org/ggml docs/gguf.md."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = 4

        def number(form: str) -> int:
            nonlocal place
            (value,) = struct.unpack_from(form, content, place)
            place += struct.calcsize(form)
            return value

        def skip(count: int, size: int = 1) -> None:
            nonlocal place
            if count * size > len(content) - place:
                raise ValueError("its header ends after the file")
            place += count * size

        def value(kind: int) -> None:
            if kind == _STRING:
                skip(number("<Q"))
            elif kind in _VALUE_SIZES:
                skip(_VALUE_SIZES[kind])
            else:
                raise ValueError(f"its header has a value of unknown type {kind}")

        number("<I")  # version
        tensors, entries = number("<Q"), number("<Q")
        for _ in range(entries):
            value(_STRING)
            kind = number("<I")
            if kind != _LIST:
                value(kind)
                continue
            kind, count = number("<I"), number("<Q")
            if kind in _VALUE_SIZES:
                skip(count, _VALUE_SIZES[kind])
                continue
            for _ in range(count):
                value(kind)
        for _ in range(tensors):
            value(_STRING)
            dimensions = number("<I")
            if dimensions > _DIMENSIONS:
                raise ValueError(f"a tensor has {dimensions} dimensions")
            skip(dimensions + 1, 8)  # and its place
            skip(4)  # type


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
