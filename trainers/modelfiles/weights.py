"""Weights of a model in one file or in shards; weights of 8 bits are multiplied by their scales."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError, shorten
from ..weights import find_damage
from . import gguf_file
from .containers import Container, open_container
from .places import weight_files

NOTE_LIMIT = 4096  # bytes of the JSON text that ComfyUI stores beside a weight
SCALES = (".scale_weight", ".weight_scale")
BESIDE_WEIGHTS = (*SCALES, ".scale_input", ".input_scale", ".comfy_quant")
MARK = "scaled_fp8"
"""The end of the key that files of scaled fp8 weights have beside them."""
PLAIN_TYPES = ("F64", "F32", "F16", "BF16")
FLOAT8_TYPES = ("F8_E4M3", "F8_E5M2")
FLOAT8_FORMATS = ("float8_e4m3fn", "float8_e5m2")
INT8, INT8_FORMAT = "I8", "int8_tensorwise"
# What other quantisations keep beside a weight: second scales, scales of blocks, zero points, code books.
OTHER_QUANTISATION = re.compile(
    r"weight_scale_.+|pre_quant_scale|.*absmax|.*quant_map|SCB|qweight|qzeros|w?scales|(weight_)?zero_point"
)


class Weights:
    """The tensors of open files by key, read one at a time."""

    def __init__(self, files: Mapping[Path, Container]) -> None:
        """Raises UserError when two of the files hold the same tensor."""
        self._files: dict[str, Container] = {}
        self._paths: dict[str, Path] = {}
        self.metadata: dict[str, str] = {}
        for path, file in files.items():
            # Both halves of a split VACE model may have this mark.
            if twice := {key for key in self._files.keys() & set(file.keys) if not key.endswith(MARK)}:
                raise UserError(f"{path} holds tensors of another shard too ({shorten(twice)}); download it again")
            self._files |= dict.fromkeys(file.keys, file)
            self._paths |= dict.fromkeys(file.keys, path)
            self.metadata |= file.metadata

    @property
    def keys(self) -> list[str]:
        """All keys but those of scales and other notes on 8-bit weights."""
        return [key for key in self._files if not key.endswith((*BESIDE_WEIGHTS, MARK))]

    @property
    def all_keys(self) -> list[str]:
        return list(self._files)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._files[key].shape(key)

    def dtype(self, key: str) -> str:
        """The type it is stored in, by safetensors' or GGUF's name."""
        return self._files[key].dtype(key)

    def raw(self, key: str) -> Tensor:
        """The tensor as it is stored."""
        return self._files[key].read(key)

    def read(self, key: str, dtype: torch.dtype) -> Tensor:
        """The tensor in `dtype`; where scales stand beside it, value times scale, computed in float32.

        Raises UserError when it holds numbers that are not finite, or is a matrix of zeros.
        """
        tensor, scale = self._files[key].read(key, dtype), self._factor(key)
        if scale is not None:
            tensor = tensor.float().mul_(scale)
        tensor = tensor.to(dtype)
        if damage := find_damage(key, tensor):
            raise UserError(f"{self._paths[key]} is damaged: {key} holds {damage}; download it again")
        return tensor

    def is_8bit(self, key: str) -> bool:
        return self.dtype(key) in (*FLOAT8_TYPES, INT8)

    def read_stored(self, key: str) -> tuple[Tensor, Tensor | None]:
        """An 8-bit tensor as it is stored, and its scale: float32, [] or [rows, 1, ...]. Raises UserError as `read`."""
        self.read(key, torch.float32)
        return self.raw(key), self._factor(key)

    def require_readable(self, keys: Iterable[str], path: Path, remedy: str) -> None:
        """Raises UserError for what `read` cannot read: empty tensors, and other quantisations than these.

        float8 with or without a scale, and ComfyUI's int8 with one, named `scale_weight` or `weight_scale`, for each
        matrix or for each of its rows; GGUF. Scales are positive and finite. Reads no weights but the scales.
        """
        keys = set(keys)
        scales = {key: scale for key in keys if (scale := self._scale(key))}
        formats = self._stated_formats(keys)
        scaled = {self._paths[key] for key in (*scales, *formats)}
        for key in sorted(keys):
            shape, dtype = self.shape(key), self.dtype(key)
            form, what = formats.get(key), None
            if form not in (INT8_FORMAT if dtype == INT8 else None, *FLOAT8_FORMATS, None):
                what = f"{key} is {form}"
            elif dtype not in PLAIN_TYPES + FLOAT8_TYPES + gguf_file.TYPES and (dtype != INT8 or not form):
                what = f"{key} is {dtype}"
            elif (
                self._paths[key] in scaled and dtype in (*FLOAT8_TYPES, INT8) and len(shape) == 2 and key not in scales
            ):
                what = f"{key} has no scale"
            if not what and key in scales and not _one_or_per_row(self.shape(scales[key]), shape):
                what = f"{key} has scales of shape {list(self.shape(scales[key]))} instead of one, or one per row"
            if what:
                raise UserError(f"{path} is 4-bit or 8-bit in a form that is not read: {what}; {remedy}")
            if 0 in shape:
                raise UserError(f"{path} is damaged: its tensor {key} is empty; {remedy}")
        for key in sorted(self._files):
            module, _, name = key.rpartition(".")
            if OTHER_QUANTISATION.fullmatch(name) and {key, module, f"{module}.weight"} & keys:
                raise UserError(f"{path} is 4-bit or 8-bit in a form that is not read: it has {key}; {remedy}")
        for key in sorted(scales):
            self._check_scale(key)

    def _factor(self, key: str) -> Tensor | None:
        """The scale of a weight, so that it multiplies the weight's rows."""
        name = self._scale(key)
        if name is None:
            return None
        factor = self.raw(name).float()
        # One for the matrix, or one for each of its rows.
        return factor.reshape(-1, *[1] * (len(self.shape(key)) - 1)) if factor.numel() > 1 else factor.reshape(())

    def _scale(self, key: str) -> str | None:
        return next(iter(self._scales(key)), None)

    def _scales(self, key: str) -> list[str]:
        module = key.removesuffix(".weight")
        return [module + end for end in SCALES if key != module and module + end in self._files]

    def _check_scale(self, key: str) -> None:
        first, *others = self._scales(key)
        scale = self.raw(first).float()
        wrong = scale[~(scale.isfinite() & (scale > 0))]
        if len(wrong):
            raise UserError(
                f"{self._paths[first]} is damaged: its scale {first} is {float(wrong[0]):g}, a positive number was "
                "expected; download it again"
            )
        for other in others:
            if not torch.equal(self.raw(other).float().flatten(), scale.flatten()):
                raise UserError(
                    f"{self._paths[first]} has two scales of {key}, {first} and {other}, which differ; give another "
                    "file of the model"
                )

    def _stated_formats(self, keys: Iterable[str]) -> dict[str, str]:
        """What ComfyUI writes of a weight's quantisation, in the header or beside the weight."""
        unknown, modules = "in an unknown format", {key.removesuffix(".weight"): key for key in keys}
        formats = {}
        try:
            layers = json.loads(self.metadata.get("_quantization_metadata", "{}")).get("layers", {})
            formats |= {modules[name]: _format(layer) for name, layer in layers.items() if name in modules}
            for module, key in modules.items():
                note = f"{module}.comfy_quant"
                if note in self._files:
                    if math.prod(self.shape(note)) > NOTE_LIMIT:
                        raise ValueError(f"{note} is too long")
                    formats[key] = _format(json.loads(bytes(self.raw(note).tolist())))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return dict.fromkeys(modules.values(), unknown)
        return formats


def _format(note: dict) -> str:
    rotated = note.get("convrot") or (note.get("params") or {}).get("convrot")
    return f"{note['format']}{' with rotated weights' if rotated else ''}"


def _one_or_per_row(scales: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    return math.prod(scales) == 1 or (scales[0] == weight[0] == math.prod(scales) and len(scales) <= len(weight))


@contextmanager
def open_weights(place: Path, kind: str, remedy: str, beside: Path | None = None) -> Iterator[Weights]:
    """The weights at `place` (see `weight_files`) and at `beside`, open within the block; only headers are read yet.

    `kind` and `remedy` are for messages: `the transformer`, `give ...`. Raises UserError when they cannot be read, also
    from within the block.
    """
    from safetensors import SafetensorError

    try:
        files = [file for part in (place, beside) if part for file in weight_files(part, remedy)]
        yield Weights({path: open_container(path, remedy) for path in files})
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {kind} {place} ({error}); {remedy}, downloaded to its end") from error
