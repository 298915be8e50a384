"""Changes to the files of a reward."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def edit_json(path: Path, section: str = "", **values: Any) -> None:
    """Set values in a section of a JSON file, or at its top."""
    content = json.loads(path.read_text(encoding="utf-8"))
    (content[section] if section else content).update(values)
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_tensors(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Replace the tensors of a .pth or .safetensors file by what `change` returns."""
    if path.suffix == ".pth":
        torch.save(change(torch.load(path, weights_only=True)), path)
    else:
        tensors = change(load_file(path))
        path.unlink()
        save_file(tensors, path, metadata={"format": "pt"})


def set_tensor(path: Path, ending: str, change: Callable[[Tensor], Tensor]) -> None:
    """Change the one tensor whose name ends with `ending`."""

    def changed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        (name,) = (name for name in tensors if name.endswith(ending))
        return tensors | {name: change(tensors[name])}

    edit_tensors(path, changed)


def drop_tensors(path: Path, *endings: str) -> None:
    """Remove one tensor per ending of a name."""

    def without(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        left = {name: value for name, value in tensors.items() if not name.endswith(endings)}
        assert len(tensors) - len(left) == len(endings)
        return left

    edit_tensors(path, without)
