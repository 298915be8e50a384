"""Tensors of a file that may be broken or hostile."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError
from ..weights import find_damage, load_pickled

TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
REMEDY = "download it again from its source"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pth file by name, on the CPU.

    All are dense, of a floating-point type, and finite, and no matrix is zero. Raises UserError for every other file;
    code in a .pth is not run.
    """
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else load_pickled(path, REMEDY)
    except UserError:
        raise
    except Exception as error:  # a broken file makes the parsers raise almost anything
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{path} cannot be read ({reason}); {REMEDY}") from error
    if not isinstance(tensors, dict) or not all(isinstance(key, str) for key in tensors):
        raise UserError(f"{path} is not a dictionary of tensors by name; {REMEDY}")
    for name, value in tensors.items():
        if fault := _fault(name, value):
            raise UserError(f"{path} holds {fault} in {name}; {REMEDY}")
    return tensors


def _fault(name: str, value: object) -> str | None:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__} instead of a tensor"
    if value.is_nested or value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        return "a sparse, nested, quantised or empty tensor"
    if value.dtype not in TYPES:
        return f"numbers of type {str(value.dtype).removeprefix('torch.')} instead of floating-point ones"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"fewer numbers than its shape {list(value.shape)} says"
    # In float32, as which all is computed: a number of float64 may be infinite there.
    return find_damage(name, value.float() if value.dtype is torch.float64 else value)
