"""From a LoRA file or PEFT folder to a LoRA."""

from __future__ import annotations

import logging
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..modelfiles.containers import name_other_format
from ..modelfiles.identify import name_adapter
from ..modelfiles.inspection import describe
from . import alphas
from .adapter import LoRA, check_alpha, check_shapes, naming
from .hashes import without_hashes
from .keys import PEFT, LoRAKeys, ModuleKeys, sort_keys

PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
logger = logging.getLogger(__name__)
LARGEST = 1 << 35  # bytes; rank 1024 in float32 on every layer of the 14B model takes two thirds of it


@dataclass(frozen=True)
class LoRAHeader:
    """What a LoRA file holds, without the values of its factors.

    `path`: the file with the weights; `alpha`: by diffusers' module name; `metadata`: as in `LoRA`.
    """

    path: Path
    keys: LoRAKeys
    alpha: dict[str, float]
    metadata: dict[str, str]


def read_lora(path: str | Path) -> LoRA:
    """Read a LoRA for Wan: a folder of PEFT or diffusers, or a .safetensors file.

    The file's names may be those of PEFT, diffusers, ComfyUI, kohya (musubi-tuner) or DiffSynth. A module's alpha is
    that of its `.alpha` tensor, else that in the file's header or in the adapter_config.json beside it, else its rank
    (scale 1) as in ComfyUI and diffusers; files with PEFT's names must have one of the former. What only Wan's
    image-to-video model has is left out, with a warning. Raises UserError with the reason for a file that is foreign,
    broken or not a regular file.
    """
    header = read_lora_header(path)
    keys = header.keys
    if keys.left_out:
        logger.warning(
            "%s: %d of its tensors have no effect on this model, such as %s",
            header.path,
            len(keys.left_out),
            keys.left_out[0][:120],
        )
    with _opened(header.path) as file:
        for one, other in keys.twins:
            if not torch.equal(file.get_tensor(one).float(), file.get_tensor(other).float()):
                raise UserError(f"{header.path} holds {one} and {other}, which differ; choose another file")
        modules = {name: (file.get_tensor(k.down), file.get_tensor(k.up)) for name, k in keys.modules.items()}
        differences = {name: file.get_tensor(key) for name, key in keys.differences.items()}
    with naming(str(header.path)):
        return LoRA(modules, header.alpha, header.metadata, differences, str(header.path))


def read_lora_header(path: str | Path) -> LoRAHeader:
    """All of `read_lora` but the factors' values. Raises UserError as it does, but not for the values."""
    path = _weights_file(Path(path))
    with naming(str(path)), _opened(path) as file:
        metadata, names = file.metadata() or {}, set(file.keys())
        stored = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        found = _sorted(stored, path)
        keys = found.modules
        shapes = {name: [stored[key] for key in (k.down, k.up)] for name, k in keys.items()}
        for name, (down, up) in shapes.items():
            check_shapes(name, down, up)
        alpha = {name: _alpha_tensor(file, name, k.alpha) for name, k in keys.items() if k.alpha}
        is_peft = any(name.startswith(PEFT) for name in names)
    ranks = {name: shapes[name][0][0] for name in keys if name not in alpha}
    if ranks:
        alpha |= _alphas_elsewhere(path, metadata, keys, ranks, is_peft)
    return LoRAHeader(
        path, found, {name: alpha[name] for name in keys}, without_hashes(alphas.without_settings(metadata))
    )


def _sorted(shapes: Mapping[str, tuple[int, ...]], path: Path) -> LoRAKeys:
    """The keys by what they hold. Raises UserError that names the file where it is no LoRA."""
    try:
        return sort_keys(shapes.keys(), path)
    except UserError as error:
        what = None if name_adapter(shapes) else describe(shapes)
        if what is None:
            raise
        raise UserError(f"{path} is {what}, not a LoRA; choose a LoRA for Wan") from error


def _weights_file(path: Path) -> Path:
    """The file with the weights. Raises UserError when `path` is neither a regular file nor a folder with one."""
    if not os.path.exists(path):
        raise UserError(f"cannot read the LoRA {path}: there is no such file or folder")
    try:
        if path.is_dir():
            found = [path / name for name in (PEFT_WEIGHTS, DIFFUSERS_WEIGHTS) if (path / name).is_file()]
            if not found:
                raise UserError(
                    f"no LoRA in the folder {path}: neither {PEFT_WEIGHTS} nor {DIFFUSERS_WEIGHTS} is there; "
                    "give a folder that PEFT or diffusers has written"
                )
            path = found[0]
        _require_regular(path)
        if what := name_other_format(path):
            raise UserError(f"cannot read the LoRA {path}: it is {what}; give a .safetensors file or a PEFT folder")
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} has {path.stat().st_size / 1e9:.0f} GB, more than any LoRA; choose another file")
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return path


def _require_regular(path: Path) -> None:
    """A pipe would never end and a device never begin. Raises UserError, or OSError when `path` is not there."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise UserError(f"{path} is not a regular file; give a .safetensors file or a folder of PEFT or diffusers")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The open .safetensors file. Raises UserError when it, or what the block reads of it, cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except UserError:
        raise
    # RuntimeError: torch has no memory to map the file.
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"cannot read the LoRA {path} ({error}); give a complete .safetensors file or a PEFT folder")


def _alpha_tensor(file: Any, name: str, key: str) -> float:
    shape = file.get_slice(key).get_shape()
    value = file.get_tensor(key) if math.prod(shape) == 1 else None
    if value is None or value.is_complex():
        raise UserError(f"the LoRA's `{key}` of shape {tuple(shape)} is not one number: the file is broken")
    check_alpha(name, float(value))
    return float(value)


def _alphas_elsewhere(
    path: Path, metadata: Mapping[str, str], keys: Mapping[str, ModuleKeys], ranks: Mapping[str, int], is_peft: bool
) -> dict[str, float]:
    """The alpha of the modules in `ranks`, which have no `.alpha` tensor."""
    sources = alphas.read_header(metadata, str(path))
    config = path.parent / PEFT_CONFIG
    if config.exists() and (is_peft or _belongs_to(config, path)):
        sources.append(_config_settings(config))
    if is_peft and not sources:
        raise UserError(
            f"cannot read {config} (it is not there): a PEFT LoRA has its alpha there; put the file beside the weights"
        )
    if not sources:
        return {name: float(rank) for name, rank in ranks.items()}
    found: dict[str, float] = {}
    for name, rank in ranks.items():
        first, *others = [(settings.of((name, keys[name].spelling), rank), settings.source) for settings in sources]
        conflict = next((other for other in others if other[0] != first[0]), None)
        if conflict:
            raise UserError(
                f"alpha of {name} is {first[0]:g} in {first[1]}, but {conflict[0]:g} in {conflict[1]}; "
                "remove the wrong one"
            )
        check_alpha(name, first[0])
        found[name] = first[0]
    return found


def _belongs_to(config: Path, path: Path) -> bool:
    """Whether adapter_config.json is about this file with names that are not PEFT's: there is no other beside it."""
    return path.name == PEFT_WEIGHTS or list(config.parent.glob("*.safetensors")) == [path]


def _config_settings(path: Path) -> alphas.AlphaSettings:
    try:
        _require_regular(path)
        with open(path, encoding="utf-8") as file:
            text = file.read(alphas.LARGEST + 1)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {path} ({error}): a PEFT LoRA has its alpha there; put the file beside the weights"
        ) from error
    return alphas.read_config(text, str(path))
