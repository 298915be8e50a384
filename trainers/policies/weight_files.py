"""Weights of a model in one .safetensors file or in shards; 8-bit weights are multiplied by their scales."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, shorten
from .model_config import read_json

STANDARD_NAMES = ("diffusion_pytorch_model", "model")
"""How diffusers and transformers name the weights in a model's folder."""
INDEX = ".safetensors.index.json"
HEADER_LIMIT = 16 * 2**20  # bytes; that of a model of 14B parameters is below 1 MB
NOTE_LIMIT = 4096  # bytes of the JSON text that ComfyUI stores beside a weight
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{1,5})-of-(?P<count>\d{1,5})\.safetensors")
OTHER_FORMATS = {
    b"GGUF": "a GGUF file",
    b"PK\x03\x04": "a pickled PyTorch file (.pth, .ckpt, .bin)",
    b"\x80": "a pickled PyTorch file (.pth, .ckpt, .bin)",
    b"version ": "a Git LFS pointer, not the file that it stands for",
    b"<": "a web page, not the file that was to be downloaded",
}
SCALES = (".scale_weight", ".weight_scale")
BESIDE_WEIGHTS = (*SCALES, ".scale_input", ".input_scale", ".comfy_quant")
PLAIN_TYPES = ("F64", "F32", "F16", "BF16")
FLOAT8_TYPES = ("F8_E4M3", "F8_E5M2")
FLOAT8_FORMATS = ("float8_e4m3fn", "float8_e5m2")
# What other quantisations keep beside a weight: second scales, scales of blocks, zero points, code books.
OTHER_QUANTISATION = re.compile(
    r"weight_scale_.+|pre_quant_scale|.*absmax|.*quant_map|SCB|qweight|qzeros|w?scales|(weight_)?zero_point"
)


class Weights:
    """The tensors of open .safetensors files by key, read one at a time."""

    def __init__(self, files: Mapping[Path, Any]) -> None:
        """`files`: open `safe_open` handles. Raises UserError when two of them hold the same tensor."""
        self._files: dict[str, Any] = {}
        self.metadata: dict[str, str] = {}
        for path, file in files.items():
            keys = set(file.keys())
            if twice := keys & self._files.keys():
                raise UserError(f"{path} holds tensors of another shard too ({shorten(twice)}); download it again")
            self._files |= dict.fromkeys(keys, file)
            self.metadata |= file.metadata() or {}

    @property
    def keys(self) -> list[str]:
        """All keys but those of scales and other notes on 8-bit weights."""
        return [key for key in self._files if not key.endswith(BESIDE_WEIGHTS) and not key.endswith("scaled_fp8")]

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._files[key].get_slice(key).get_shape())

    def raw(self, key: str) -> Tensor:
        """The tensor as it is stored."""
        return self._files[key].get_tensor(key)

    def read(self, key: str, dtype: torch.dtype) -> Tensor:
        """The tensor in `dtype`; where a scale stands beside it, value times scale, computed in float32.

        Raises UserError when the scale is not finite.
        """
        tensor, scale = self.raw(key), self._scale(key)
        if scale is None:
            return tensor.to(dtype)
        factor = float(self.raw(scale).float())
        if not math.isfinite(factor):
            raise UserError(f"the scale {scale} is {factor}; the file is damaged, download it again")
        return tensor.float().mul_(factor).to(dtype)

    def require_readable(self, keys: Iterable[str], path: Path, remedy: str) -> None:
        """Raises UserError for what `read` cannot read: empty tensors, and every quantisation but scaled float8.

        Scaled float8 has one scale for each matrix, named `scale_weight` or `weight_scale`. Reads no weights.
        """
        keys = set(keys)
        scales = {key: scale for key in keys if (scale := self._scale(key))}
        formats = self._stated_formats(keys)
        for key in sorted(keys):
            shape, dtype = self.shape(key), self._files[key].get_slice(key).get_dtype()
            what = None
            if dtype not in PLAIN_TYPES + FLOAT8_TYPES:
                what = f"{key} is {dtype}"
            elif formats.get(key, FLOAT8_FORMATS[0]) not in FLOAT8_FORMATS:
                what = f"{key} is {formats[key]}"
            elif key in scales and (count := math.prod(self.shape(scales[key]))) != 1:
                what = f"{key} has {count} scales instead of one"
            elif (scales or formats) and dtype in FLOAT8_TYPES and len(shape) == 2 and key not in scales:
                what = f"{key} has no scale"
            if what:
                raise UserError(f"{path} is 4-bit or 8-bit in a form that is not read: {what}; {remedy}")
            if 0 in shape:
                raise UserError(f"{path} is damaged: its tensor {key} is empty; {remedy}")
        for key in sorted(self._files):
            module, _, name = key.rpartition(".")
            if OTHER_QUANTISATION.fullmatch(name) and {key, module, f"{module}.weight"} & keys:
                raise UserError(f"{path} is 4-bit or 8-bit in a form that is not read: it has {key}; {remedy}")

    def _scale(self, key: str) -> str | None:
        module = key.removesuffix(".weight")
        return next((module + end for end in SCALES if key != module and module + end in self._files), None)

    def _stated_formats(self, keys: Iterable[str]) -> dict[str, str]:
        """What ComfyUI writes of a weight's quantisation, in the header or beside the weight."""
        unknown, modules = "in an unknown format", {key.removesuffix(".weight"): key for key in keys}
        formats = {}
        try:
            layers = json.loads(self.metadata.get("_quantization_metadata", "{}")).get("layers", {})
            formats |= {modules[name]: str(layer.get("format")) for name, layer in layers.items() if name in modules}
            for module, key in modules.items():
                note = f"{module}.comfy_quant"
                if note in self._files:
                    if math.prod(self.shape(note)) > NOTE_LIMIT:
                        raise ValueError(f"{note} is too long")
                    formats[key] = str(json.loads(bytes(self.raw(note).tolist()))["format"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return dict.fromkeys(modules.values(), unknown)
        return formats


@contextmanager
def open_weights(place: Path, kind: str, remedy: str) -> Iterator[Weights]:
    """The weights at `place` (see `weight_files`), open within the block; nothing but their headers is read yet.

    `kind` and `remedy` are for messages: `the transformer`, `give ...`. Raises UserError when they cannot be read, also
    from within the block.
    """
    from safetensors import SafetensorError

    try:
        with ExitStack() as stack:
            yield Weights({path: stack.enter_context(_opened(path, remedy)) for path in weight_files(place, remedy)})
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {kind} {place} ({error}); {remedy}, downloaded to its end") from error


def weight_files(place: Path, remedy: str) -> list[Path]:
    """The .safetensors files of the model at `place`: a folder, a file, an index of shards, or any one shard.

    Raises UserError that names the shards that are missing, or when a folder has no weights or those of several models.
    """
    if os.path.isdir(place):
        return _files_of_folder(place, remedy)
    if place.name.endswith(INDEX):
        return _complete(place, _names_in_index(place))
    shard = SHARD.fullmatch(place.name)
    if not shard or not int(shard["count"]):
        return [place]
    digits, count = len(shard["number"]), shard["count"]
    numbers = range(1, int(count) + 1)
    return _complete(place, [f"{shard['stem']}-{number:0{digits}}-of-{count}.safetensors" for number in numbers])


def _files_of_folder(folder: Path, remedy: str) -> list[Path]:
    for name in STANDARD_NAMES:
        for end in (".safetensors", INDEX):
            if os.path.isfile(folder / (name + end)):
                return weight_files(folder / (name + end), remedy)
    found = {tuple(weight_files(path, remedy)) for path in sorted(folder.glob("*.safetensors"))}
    if len(found) == 1:
        return list(found.pop())
    if found:
        names = shorten(files[0].name for files in found)
        raise UserError(f"{folder} holds the weights of several models ({names}); give the path of one file")
    raise UserError(f"{folder} holds no .safetensors file; {remedy}")


def _names_in_index(index: Path) -> list[str]:
    mapped = read_json(index).get("weight_map")
    names = sorted(set(mapped.values())) if isinstance(mapped, dict) and all(map(_is_name, mapped.values())) else []
    if not names:
        raise UserError(f"{index} does not list the shards of a model (weight_map); download it again")
    return names


def _is_name(value: object) -> bool:
    """Whether this is the name of a file in the same folder."""
    return isinstance(value, str) and value.endswith(".safetensors") and not {"/", "\\", "\0"} & set(value)


def _complete(place: Path, names: list[str]) -> list[Path]:
    missing = [name for name in names if not os.path.exists(place.with_name(name))]
    if missing:
        raise UserError(
            f"{place} belongs to a model in {len(names)} files, of which {len(missing)} are missing: "
            f"{shorten(missing)}; download them into the same folder"
        )
    return [place.with_name(name) for name in names]


def _opened(path: Path, remedy: str) -> Any:
    from safetensors import safe_open

    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path} is not a regular file; {remedy}")
    with open(path, "rb") as file:
        start = file.read(8)
    length = int.from_bytes(start, "little")  # of the header
    if len(start) == 8 and length > HEADER_LIMIT:
        what = next((what for magic, what in OTHER_FORMATS.items() if start.startswith(magic)), "no .safetensors file")
        raise UserError(f"{path} is {what}; {remedy}")
    return safe_open(path, "pt")
