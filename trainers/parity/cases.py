"""Recompute golden cases (recorded inputs and outputs of the reference implementations) with this code."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from ..errors import UserError
from .checks import Check

# Module of this package that recomputes a kind of golden case: files that only this kind has.
CASE_FILES = {
    "sde": ("sigmas.safetensors", "steps.safetensors", "losses.safetensors"),
    "vace": ("conditioning.safetensors", "velocity.safetensors", "cases.json"),
    "phantom": ("inputs.safetensors", "trajectory.safetensors"),
    "lora": ("comfy_native.safetensors", "velocity.safetensors"),
    "identity_reward": ("items.json", "btt.safetensors"),
}


def case_kind(path: Path) -> str | None:
    """The kind of golden case in this folder, by its files; None for any other folder."""
    for kind, files in CASE_FILES.items():
        if all((path / name).is_file() for name in files):
            return kind
    return None


def find_cases(path: str | Path) -> list[Path]:
    """`path` if it is a golden case or holds no folders, else the cases in its folders. Raises UserError."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give the folder of a golden case, or one that holds several")
    inside = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    if case_kind(path) or not inside:
        return [path]
    return [case for folder in inside for case in find_cases(folder)]


def verify_case(path: str | Path) -> list[Check]:
    """Recompute every expected quantity of one golden case. Raises UserError when it is incomplete or unreadable."""
    path = Path(path)
    kind = case_kind(path)
    if kind is None:
        known = "; ".join(f"{kind}: {', '.join(files)}" for kind, files in CASE_FILES.items())
        raise UserError(f"{path} is not a golden case. Each kind has these files: {known}")
    module = import_module(f".{kind}", __package__)
    from safetensors import SafetensorError

    try:
        return module.verify_case(path)
    except UserError:
        raise
    except (OSError, LookupError, TypeError, ValueError, RuntimeError, struct.error, SafetensorError) as error:
        raise UserError(f"the {kind} case {path} cannot be recomputed ({type(error).__name__}: {error})") from error


def verify(paths: Iterable[str | Path]) -> list[Check]:
    """The checks of all golden cases at `paths`. Raises UserError for a path without one, or a broken one."""
    return [result for path in paths for case in find_cases(path) for result in verify_case(case)]
