"""A run's memory: what a checkpoint holds, and how it is written and read.

`checkpoints/<iteration>/`: `lora.safetensors` (the trained parameters), `ema.safetensors` (their average),
`optimiser.safetensors` (AdamW's moments), `progress.json`. Noise, items and windows are functions of the seed and the
iteration (plan.py), so there is no generator state to keep. Nothing is pickled.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import UserError
from ..runs.atomic import atomic_folder


@dataclass
class Progress:
    """Where a run stands: `iteration` iterations and `updates` optimiser steps are done."""

    iteration: int = 0
    updates: int = 0
    policy: str = ""
    prompts: str = ""
    best_iteration: int = 0
    best_margin: float = float("-inf")


def save_checkpoint(
    root: Path,
    progress: Progress,
    parameters: dict[str, nn.Parameter],
    ema: dict[str, Tensor],
    optimiser: torch.optim.AdamW,
) -> Path:
    """Write `root/<iteration>` aside, sync it to disk and rename it. Raises UserError when the disk is full."""
    folder = root / f"{progress.iteration:06d}"
    moments = {
        f"{name}|{key}": torch.as_tensor(value).detach().cpu().contiguous()
        for name, parameter in parameters.items()
        for key, value in optimiser.state.get(parameter, {}).items()
    }
    with atomic_folder(folder) as aside:
        save_file({n: p.detach().cpu().contiguous() for n, p in parameters.items()}, aside / "lora.safetensors")
        save_file({n: t.detach().cpu().contiguous() for n, t in ema.items()}, aside / "ema.safetensors")
        save_file(moments, aside / "optimiser.safetensors")
        (aside / "progress.json").write_text(json.dumps(asdict(progress), indent=1) + "\n", encoding="utf-8")
    return folder


def checkpoints(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return (
        sorted(p for p in root.glob("[0-9]*") if p.name.isdigit() and (p / "progress.json").is_file())
        if root.is_dir()
        else []
    )


def read_progress(folder: Path) -> Progress:
    """Raises UserError when the checkpoint cannot be read."""
    try:
        return Progress(**json.loads((folder / "progress.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"checkpoint {folder} cannot be read ({error}); delete this folder to resume from the one before"
        ) from error


def load_checkpoint(
    folder: Path, policy: str, prompts: str, parameters: dict[str, nn.Parameter], optimiser: torch.optim.AdamW
) -> tuple[Progress, dict[str, Tensor]]:
    """Fill the parameters and the optimiser in place; return the progress and the EMA.

    Raises UserError for a checkpoint of another policy or prompt set, or one that cannot be read; nothing is changed then.
    """
    progress = read_progress(folder)
    if progress.policy != policy:
        raise UserError(
            f"checkpoint {folder} belongs to the policy `{progress.policy}`, this run trains `{policy}`: "
            "resume with the policy it was made with, or start a new run"
        )
    if progress.prompts != prompts:
        raise UserError(
            f"checkpoint {folder} was made with another prompt set (rows or pictures changed since): "
            "put the old files back, or start a new run with --start-lora and this run's export"
        )
    try:
        lora, ema, moments = (load_file(folder / f"{name}.safetensors") for name in ("lora", "ema", "optimiser"))
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {folder} cannot be read ({error}); delete this folder to resume from the one before"
        ) from error
    shapes = {n: p.shape for n, p in parameters.items()}
    if {n: t.shape for n, t in lora.items()} != shapes or {n: t.shape for n, t in ema.items()} != shapes:
        raise UserError(
            f"checkpoint {folder} does not fit this policy's LoRA: its layers or rank differ; "
            "resume with the policy it was made with, or start a new run"
        )
    if progress.updates and {key.split("|")[0] for key in moments} != set(parameters):
        raise UserError(
            f"checkpoint {folder} lacks the optimiser's moments; delete this folder to resume from the one before"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(lora[name])
            state = {key.split("|")[1]: value for key, value in moments.items() if key.split("|")[0] == name}
            if state:
                # AdamW counts its steps on the CPU, and keeps its moments beside the parameter.
                optimiser.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in state.items()}
    return progress, ema


def prune(root: Path, keep: int, spare: int) -> None:
    """Delete all but the `keep` newest checkpoints and that of iteration `spare`."""
    for folder in checkpoints(root)[:-keep]:
        if int(folder.name) != spare:
            shutil.rmtree(folder, ignore_errors=True)
