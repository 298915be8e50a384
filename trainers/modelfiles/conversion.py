"""Pickled files of weights turned into .safetensors, once."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError
from ..files import atomic_file

PICKLED = (".pth", ".pt", ".bin", ".ckpt")
REMEDY = "give a file that torch.save wrote"


def convert_pickled(path: Path) -> Path | None:
    """Write the tensors of a pickled file as .safetensors beside it; the path of that, None if it is there already.

    Code in the file is not run, and no tensor changes. Raises UserError for other files, and for tensors that hold
    NaN, infinity or only zeros.
    """
    from safetensors.torch import save_file

    from ..weights import find_damage
    from .containers import PickledFile

    target = path.with_suffix(".safetensors")
    if os.path.lexists(target):  # also a link to a disk that is not there
        return None
    content = PickledFile(path, REMEDY)
    tensors = {}
    for key in content.keys:
        # A copy: views of one memory cannot be stored.
        tensors[key] = content.read(key).clone().contiguous()
        if tensors[key].is_floating_point() and (damage := find_damage(key, tensors[key].float())):
            raise UserError(f"{path} is damaged: {key} holds {damage}; download it again")
    with atomic_file(target) as aside:
        save_file(tensors, aside, metadata={"format": "pt"})
    return target


def pickled_files(place: Path) -> list[Path]:
    """The pickled files at `place`: itself, or those of a folder and of its folders. Raises UserError without any."""
    if place.is_file():
        return [place]
    found = sorted(p for depth in ("*", "*/*") for p in place.glob(depth) if p.suffix in PICKLED and p.is_file())
    if not found:
        reason = f"{place} holds no pickled file" if place.is_dir() else f"there is no {place}"
        raise UserError(f"{reason}; give a pickled file ({', '.join(PICKLED)}) or a folder with some")
    return found
