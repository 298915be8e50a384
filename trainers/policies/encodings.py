"""Encoded texts and reference images on disk, where later runs find them again.

One .safetensors file for each encoding, named by a digest of what was encoded and of the encoder's own files, so that
neither a changed picture nor another encoder can find a wrong one.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Hashable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_file, sweep

LIMIT = 16 * 2**30
"""Bytes of a folder's encodings, beyond which those that were not used for longest are deleted: 16,000 prompts."""
KEPT_SECONDS = 24 * 3600.0
SAMPLES, SAMPLE_BYTES = 256, 2**16
"""Of a large file: in UMT5-XXL of 11 GB one sample lies in every 44 MB, and its matrices have 33 to 84 MB."""
NAME = "encoding"


class EncodingStore:
    """The encodings of one encoder in `folder`, float32 by key. A damaged file counts as missing and is deleted.

    `encoder`: a digest of what the encodings depend on beside their keys (see `files_digest`).
    """

    def __init__(self, folder: Path, encoder: str) -> None:
        self.folder, self.encoder = folder, encoder
        folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, key: Hashable) -> bool:
        return self._path(key).is_file()

    def get(self, key: Hashable) -> Tensor | None:
        """The encoding of `key`; None where there is none, or a damaged one."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                tensor, written = file.get_tensor(NAME), (file.metadata() or {}).get("sha256")
            whole = written == _digest(tensor)
        except (OSError, SafetensorError):
            whole = False
        if not whole:
            path.unlink(missing_ok=True)
            return None
        os.utime(path)
        return tensor

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a tensor that is on the CPU. Raises UserError when the disk is full."""
        tensor = tensor.contiguous()
        # Not synced: a file that a power cut has torn is found damaged, and encoded again.
        with atomic_file(self._path(key), sync=False) as aside:
            save_file({NAME: tensor}, aside, metadata={"sha256": _digest(tensor)})

    def _path(self, key: Hashable) -> Path:
        name = hashlib.sha256(f"{self.encoder}\n{key!r}".encode()).hexdigest()
        return self.folder / f"{name}.safetensors"


def prune(folder: Path, limit: int = LIMIT) -> None:
    """Delete encodings, those first that were not used for longest, until they are within `limit` bytes.

    Those used within a day stay: runs that train now have looked them up when they began.
    """
    sweep(folder)
    found = []
    for path in folder.glob("*.safetensors"):
        try:
            status = path.stat()
        except OSError:  # another run has deleted it
            continue
        found.append((status.st_mtime, status.st_size, path))
    size, newest = sum(size for _, size, _ in found), time.time() - KEPT_SECONDS
    for used, own, path in sorted(found):
        if size <= limit or used >= newest:
            return
        path.unlink(missing_ok=True)
        size -= own


def files_digest(paths: Iterable[Path], *beside: object) -> str:
    """A digest of the files' names, sizes and contents, and of the text of `beside`.

    Of a file above 16 MB evenly spread samples are read: any other training of a model changes them. Raises OSError.
    """
    digest = hashlib.sha256(repr(beside).encode())
    for path in paths:
        size = path.stat().st_size
        digest.update(f"\n{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            if size <= SAMPLES * SAMPLE_BYTES:
                digest.update(file.read())
                continue
            for index in range(SAMPLES):
                file.seek(index * (size - SAMPLE_BYTES) // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _digest(tensor: Tensor) -> str:
    shape = repr((tuple(tensor.shape), tensor.dtype)).encode()
    return hashlib.sha256(shape + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
