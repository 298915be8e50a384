"""Files of tensors in the formats that weights come in: .safetensors, pickled PyTorch, GGUF.

Each container has `keys`, `metadata`, `shape(key)`, `dtype(key)` by safetensors' or GGUF's name (`BF16`, `Q4_K`), and
`read(key, dtype)`. Nothing but headers is read before `read`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import UserError
from ..weights import is_dense, load_pickled

HEADER_LIMIT = 16 * 2**20  # bytes; that of a model of 14B parameters is below 1 MB
GGUF, ZIP = b"GGUF", b"PK\x03\x04"
OTHER_FORMATS = {
    GGUF: "a GGUF file",
    ZIP: "a pickled PyTorch file (.pth, .ckpt, .bin)",
    b"\x80": "a pickled PyTorch file of an old format (.pth, .ckpt, .bin)",
    b"version ": "a Git LFS pointer, not the file that it stands for",
    b"<": "a web page, not the file that was to be downloaded",
}
# What a pickled checkpoint calls its weights when it holds more than them.
STATES = ("state_dict", "model", "module")
TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
}


class Container(Protocol):
    """An open file of tensors."""

    keys: list[str]
    metadata: Mapping[str, str]

    def shape(self, key: str) -> tuple[int, ...]: ...

    def dtype(self, key: str) -> str: ...

    def read(self, key: str, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor as it is stored; one that is stored in blocks of few bits is given in `dtype`."""
        ...


class SafetensorsFile:
    """An open .safetensors file."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._file: Any = safe_open(path, "pt")
        self.keys = list(self._file.keys())
        self.metadata: Mapping[str, str] = self._file.metadata() or {}

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(key).get_shape())

    def dtype(self, key: str) -> str:
        return self._file.get_slice(key).get_dtype()

    def read(self, key: str, dtype: torch.dtype | None = None) -> Tensor:
        return self._file.get_tensor(key)


class PickledFile:
    """A file of torch.save with a dictionary of tensors; code in it is not run."""

    def __init__(self, path: Path, remedy: str) -> None:
        content = load_pickled(path, remedy)
        for name in STATES:
            if isinstance(content, dict) and isinstance(content.get(name), dict):
                content = content[name]
        # A state dictionary of torch has entries that are no tensors, such as `_extra_state`.
        found = content if isinstance(content, dict) else {}
        self._tensors = {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if not self._tensors or not all(map(is_dense, self._tensors.values())):
            raise UserError(f"{path} is not a dictionary of dense tensors by name; {remedy}")
        self.keys = list(self._tensors)
        self.metadata: Mapping[str, str] = {}

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].shape)

    def dtype(self, key: str) -> str:
        dtype = self._tensors[key].dtype
        return TYPE_NAMES.get(dtype, str(dtype).removeprefix("torch."))

    def read(self, key: str, dtype: torch.dtype | None = None) -> Tensor:
        return self._tensors[key].detach()


def open_container(path: Path, remedy: str) -> Container:
    """The open file, in the format that its first bytes show.

    Raises UserError for another format, OSError or SafetensorError for a file that is cut off or cannot be read.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path} is not a regular file; {remedy}")
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(GGUF):
        from .gguf_file import GgufFile

        return GgufFile(path, remedy)
    if start.startswith(ZIP):
        return PickledFile(path, remedy)
    if what := name_other_format(path):
        raise UserError(f"{path} is {what}; {remedy}")
    return SafetensorsFile(path)


def name_other_format(path: Path) -> str | None:
    """What a file is whose first bytes are not those of a .safetensors file; None for the others. Raises OSError."""
    with open(path, "rb") as file:
        start = file.read(8)
    if len(start) < 8 or int.from_bytes(start, "little") <= HEADER_LIMIT:
        return None
    return next((what for magic, what in OTHER_FORMATS.items() if start.startswith(magic)), "no .safetensors file")
