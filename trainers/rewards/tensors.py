"""Tensors of a file that may be broken or hostile."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError

TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
REMEDY = "download it again from its source"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .pth file by name, on the CPU.

    All are dense, of a floating-point type, and finite. Raises UserError for every other file; code in a .pth is not
    run.
    """
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else _load_pth(path)
    except UserError:
        raise
    except Exception as error:  # a broken file makes the parsers raise almost anything
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{path} cannot be read ({reason}); {REMEDY}") from error
    if not isinstance(tensors, dict) or not all(isinstance(key, str) for key in tensors):
        raise UserError(f"{path} is not a dictionary of tensors by name; {REMEDY}")
    for name, value in tensors.items():
        if fault := _fault(value):
            raise UserError(f"{path} holds {fault} in {name}; {REMEDY}")
    return tensors


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a dense tensor are finite, in float32 too. Needs no memory of the tensor's size."""
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).float().isfinite().all())


def _load_pth(path: Path) -> object:
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is cut off, or not a file of torch.save; {REMEDY}")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    # torch stores without compression: entries that are larger in memory than on disk would fill the memory.
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise UserError(f"{path} is compressed, which a file of torch.save is not; {REMEDY}")
    return torch.load(path, "cpu", weights_only=True)


def _fault(value: object) -> str | None:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__} instead of a tensor"
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        return "a sparse, quantised or empty tensor"
    if value.dtype not in TYPES:
        return f"numbers of type {str(value.dtype).removeprefix('torch.')} instead of floating-point ones"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"fewer numbers than its shape {list(value.shape)} says"
    return None if is_finite(value) else "numbers that are not finite (NaN or infinite)"
