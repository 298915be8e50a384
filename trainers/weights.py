"""Weights of models: pickled files read safely, damage found, models filled completely or not at all."""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError, shorten

_AT_ONCE = 2**22  # numbers; in parts of this size the check takes no measurable time of a load
# Matrices that training starts at zero; one of a new model may still be.
MAY_BE_ZERO = re.compile(r"vace_blocks\.\d+\..*(before_proj|after_proj|proj_in|proj_out)|lora_B|lora_up")


def find_damage(name: str, tensor: Tensor) -> str | None:
    """What is wrong with a weight: `numbers that are not finite (NaN or infinite)`, or `only zeros` in a matrix.

    The latter is what a download has that reserved its space and did not end. Reads the tensor once, and needs no
    memory of its size where it is contiguous.
    """
    # NaN and infinity stay in a sum. Parts in their order: threads that read all over a mapped file slow the disk down.
    total = sum(float(part.sum()) for part in tensor.flatten().split(_AT_ONCE))
    if not tensor.numel() or (total and math.isfinite(total)):
        return None
    if not is_finite(tensor):
        return "numbers that are not finite (NaN or infinite)"
    low, high = torch.aminmax(tensor)
    zero = tensor.ndim > 1 and not low.any() and not high.any()
    return "only zeros" if zero and not MAY_BE_ZERO.search(name) else None


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a dense tensor are finite, in float32 too. Needs no memory of the tensor's size."""
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).float().isfinite().all())


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor has as many numbers as its shape says, on the CPU: pickled files may hold other ones too."""
    if tensor.is_nested or tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def load_pickled(path: Path, remedy: str) -> Any:
    """The content of a file of torch.save, mapped into memory; code in it is not run.

    Raises UserError for every other file.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path} is cut off, or not a file of torch.save (PyTorch 1.6 or newer); {remedy}")
        if path.suffix == ".safetensors":  # torch goes by the name
            raise UserError(f"{path} is a pickled PyTorch file with the wrong name; rename it to end in .pth")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        # torch stores without compression: entries that are larger in memory than on disk would fill the memory.
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise UserError(f"{path} is compressed, which a file of torch.save is not; {remedy}")
        return torch.load(path, "cpu", weights_only=True, mmap=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than numbers, which would run code when it is loaded, or is damaged: it is refused. "
            f"{remedy[:1].upper()}{remedy[1:]}"
        ) from error
    except Exception as error:  # a broken file makes the parsers raise almost anything
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{path} cannot be read ({reason}); {remedy}") from error


def load_full_state(model: nn.Module, state: dict[str, Tensor], source: object) -> None:
    """Make the tensors of `state` the parameters of `model` (which may be on the meta device), without a copy.

    `source` is what they were read from. Raises UserError for weights that are missing, are not the model's, or have
    another shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    _refuse("lacks", wanted.keys() - state.keys(), model, source)
    _refuse("has more than its weights:", state.keys() - wanted.keys(), model, source)
    others = [
        f"{name} is {list(state[name].shape)}, expected {list(shape)}"
        for name, shape in wanted.items()
        if tuple(state[name].shape) != shape
    ]
    _refuse("has weights of other shapes:", others, model, source)
    model.load_state_dict(state, assign=True)


def require_complete(loaded: tuple[nn.Module, dict[str, Any]], source: object) -> nn.Module:
    """The model of a `from_pretrained(..., output_loading_info=True)`.

    Raises UserError when weights were missing: `from_pretrained` fills them with noise.
    """
    model, found = loaded
    _refuse("lacks", found["missing_keys"], model, source)
    return model


def _refuse(fault: str, names: Iterable[str], model: nn.Module, source: object) -> None:
    if listed := shorten(names):
        remedy = "give the model downloaded to its end" if fault == "lacks" else "give the file of such a model"
        raise UserError(f"{source} is not a complete {type(model).__name__}: it {fault} {listed}; {remedy}")
