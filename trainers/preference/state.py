"""The states of a reward training on disk, from which it resumes: trained weights, optimiser, the best so far.

They lie in a folder, `<step>/` each; only the newest is kept.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import UserError, shorten
from ..files import atomic_folder, remove
from .pairs import Accuracy
from .recipe import RewardTraining

CHANGEABLE = {"steps", "seconds", "evaluate_every", "patience", "save_every", "micro_batch", "recompute", "pickled"}
"""Settings that a resumed training may change: they change no step that was done."""


@dataclass
class Progress:
    """How far a training is: steps done, seconds spent, its losses, and the best measurement of the held-out pairs.

    `best` holds the trained weights of `best_step` on the CPU.
    """

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    stale: int = 0
    best_step: int = 0
    best_accuracy: Accuracy | None = None
    best: dict[str, Tensor] | None = None


def newest_state(states: Path) -> Path | None:
    """What a training that has not ended left in this folder."""
    found = [p for p in states.glob("[0-9]*") if p.name.isdecimal() and (p / "progress.json").is_file()]
    return max(found, key=lambda path: int(path.name), default=None)


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies on the CPU of what is trained."""
    return {n: p.detach().to("cpu", copy=True).contiguous() for n, p in model.named_parameters() if p.requires_grad}


def save_state(
    states: Path, model: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress, training: RewardTraining
) -> None:
    """Replace the state in `states`; a crash leaves the old one."""
    states.mkdir(parents=True, exist_ok=True)
    old = [path for path in states.glob("[0-9]*") if path.name.isdecimal()]
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    moments = {
        f"{names[i]}.{key}": torch.as_tensor(value).detach().cpu().contiguous()
        for i, values in optimiser.state_dict()["state"].items()
        for key, value in values.items()
    }
    known = {name: value for name, value in vars(progress).items() if name not in ("best", "best_accuracy")}
    known |= {"training": _settings(training)}
    known |= {"best_accuracy": asdict(progress.best_accuracy) if progress.best_accuracy else None}
    place = states / f"{progress.step:06d}"
    with atomic_folder(place) as target:
        save_file(trained_weights(model), target / "weights.safetensors")
        save_file(moments, target / "optimiser.safetensors")
        if progress.best is not None:
            save_file(progress.best, target / "best.safetensors")
        (target / "progress.json").write_text(json.dumps(known), encoding="utf-8")
    for path in old:
        if path != place:
            remove(path)


@torch.no_grad()
def load_state(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, training: RewardTraining) -> Progress:
    """Continue from the state in `folder`. Raises UserError for one of other settings, or of another model."""
    try:
        known: dict[str, Any] = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
        weights, moments = (load_file(folder / f"{name}.safetensors") for name in ("weights", "optimiser"))
        best = load_file(folder / "best.safetensors") if known["best_accuracy"] else None
        before = known.pop("training")
        measured = known.pop("best_accuracy")
        progress = Progress(**known, best=best, best_accuracy=Accuracy(**measured) if measured else None)
    except Exception as error:  # a broken file makes the parsers raise almost anything
        raise UserError(
            f"the state of the training in {folder} cannot be read ({error}); remove it to begin again"
        ) from error
    now = _settings(training)
    changed = [name for name in now if name not in CHANGEABLE and before.get(name) != now[name]]
    if changed:
        raise UserError(
            f"the training in {folder.parent} began with other settings: {shorten(changed)}; give the same, or "
            "another folder"
        )
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if {n: p.shape for n, p in parameters.items()} != {n: w.shape for n, w in weights.items()}:
        raise UserError(f"the training in {folder.parent} is of another base model; give that one, or another folder")
    state: dict[int, dict[str, Tensor]] = {}
    for place, (name, parameter) in enumerate(parameters.items()):
        parameter.copy_(weights[name])
        keys = {key.removeprefix(f"{name}."): value for key, value in moments.items() if key.rpartition(".")[0] == name}
        state[place] = keys
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return progress


def _settings(training: RewardTraining) -> dict[str, Any]:
    return {
        name: value if isinstance(value, int | float | bool) else str(value) for name, value in asdict(training).items()
    }
