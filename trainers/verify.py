"""Recompute golden kits (recorded inputs and outputs of the reference implementations) with this code."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

from .errors import UserError

# Files that only this kit has, and the module whose verify_kit(path) recomputes it.
KITS = {
    "sde": (("sigmas.safetensors", "steps.safetensors", "losses.safetensors"), "grpo.kit"),
    "vace": (("conditioning.safetensors", "velocity.safetensors", "cases.json"), "policies.kit"),
    "phantom": (("inputs.safetensors", "trajectory.safetensors"), "policies.phantom_kit"),
    "lora": (("comfy_native.safetensors", "velocity.safetensors"), "lora.kit"),
    "identity_reward": (("items.json", "btt.safetensors"), "rewards.kit"),
}


@dataclass(frozen=True)
class Check:
    """One expected quantity: how far ours is from it.

    `error` is the largest absolute difference, for kind `relative` divided by the largest expected magnitude, for kind
    `exact` the number of unequal entries. `relative` is always the relative one (0 where everything is equal).
    """

    name: str
    error: float
    tolerance: float
    kind: Literal["absolute", "relative", "exact"]
    relative: float = math.nan

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance


def check(
    name: str, found, expected, tolerance: float = 0.0, kind: Literal["absolute", "relative", "exact"] = "absolute"
) -> Check:
    """Compare tensors, arrays or numbers; a wrong shape or a number that is not finite is infinitely wrong."""
    import numpy as np
    import torch

    ours, theirs = (
        np.asarray(v.detach().double().cpu() if isinstance(v, torch.Tensor) else v, np.float64)
        for v in (found, expected)
    )
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return Check(name, math.inf, tolerance, kind, math.inf)
    if not ours.size:
        return Check(name, 0.0, tolerance, kind, 0.0)
    difference = float(np.abs(ours - theirs).max())
    magnitude = float(np.abs(theirs).max())
    relative = difference / magnitude if magnitude else (0.0 if difference == 0 else math.inf)
    error = {"absolute": difference, "relative": relative, "exact": float((ours != theirs).sum())}[kind]
    return Check(name, error, tolerance, kind, relative)


def same(name: str, found, expected) -> Check:
    """Whether two names, lists or mappings are equal; the error counts entries that differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        wrong = sum(found.get(k) != expected.get(k) for k in found.keys() | expected.keys())
    else:
        wrong = int(found != expected)
    return Check(name, float(wrong), 0.0, "exact", float(wrong > 0))


def kit_kind(path: Path) -> str | None:
    """The kind of the kit in this folder, told from its files; None when it is no kit."""
    for kind, (files, _) in KITS.items():
        if all((path / name).is_file() for name in files):
            return kind
    return None


def find_kits(path: str | Path) -> list[Path]:
    """The folder itself if it is a kit or holds no folders; else what its folders hold. Raises UserError."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is no folder; give the folder of a golden kit, or one that holds several")
    inside = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    if kit_kind(path) or not inside:
        return [path]
    return [kit for folder in inside for kit in find_kits(folder)]


def verify_kit(path: str | Path) -> list[Check]:
    """Recompute everything that one kit states as expected. Raises UserError when it is incomplete or unreadable."""
    path = Path(path)
    kind = kit_kind(path)
    if kind is None:
        known = "; ".join(f"{kind}: {', '.join(files)}" for kind, (files, _) in KITS.items())
        raise UserError(f"{path} is no golden kit that is known here. A kit is known by its files ({known})")
    module = import_module(f".{KITS[kind][1]}", __package__)
    from safetensors import SafetensorError

    try:
        return module.verify_kit(path)
    except (OSError, KeyError, IndexError, json.JSONDecodeError, struct.error, SafetensorError) as error:
        raise UserError(f"the {kind} kit {path} is incomplete or broken: {type(error).__name__}: {error}") from error


def verify(paths: Iterable[str | Path]) -> list[Check]:
    """All checks of all kits at `paths`. Raises UserError for a path without a kit or a broken one."""
    return [result for path in paths for kit in find_kits(path) for result in verify_kit(kit)]


def main(paths: Sequence[str | Path]) -> int:
    """Print every quantity's worst error per kit; 0 when all are within tolerance, else 1."""
    good = bool(paths)
    for path in paths:
        try:
            kits = find_kits(path)
        except UserError as error:
            kits = []
            good = False
            print(f"NOT VERIFIED  {error}")
        for kit in kits:
            print(f"\n{kit}  ({kit_kind(kit) or 'unknown'})")
            try:
                results = verify_kit(kit)
            except UserError as error:
                good = False
                print(f"NOT VERIFIED  {error}")
                continue
            good &= bool(results) and all(r.ok for r in results)
            print(table(results))
    print("\nall within tolerance" if good else "\nNOT everything is within tolerance")
    return 0 if good else 1


def table(results: Sequence[Check]) -> str:
    """One line per check: name, relative error, error, tolerance and what the tolerance is about, verdict."""
    width = max([8, *(len(r.name) for r in results)])
    lines = [f"{'quantity':<{width}}  {'relative':>9}  {'error':>9}  {'tolerance':>9}  {'kind':<8}"]
    for r in results:
        relative = "-" if math.isnan(r.relative) else f"{r.relative:9.2e}"
        lines.append(
            f"{r.name:<{width}}  {relative:>9}  {r.error:9.2e}  {r.tolerance:9.2e}  {r.kind:<8}  "
            f"{'ok' if r.ok else 'OUT'}"
        )
    return "\n".join(lines)
