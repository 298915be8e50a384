"""What a checkpoint holds, and how it is written and read.

`checkpoints/<iteration>/`: `lora.safetensors` (the trained parameters), `ema.safetensors` (their average),
`optimiser.safetensors` (AdamW's moments), `progress.json` (the training state, and digests of it and of the three
files). Noise, items and windows are functions of the seed and the iteration (plan.py), so there is no generator state
to keep. Nothing is pickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError
from ..files import atomic_folder, read_regular, remove
from ..runs.folder import RunFolder
from .update import PolicyUpdate

FILES = ("lora", "ema", "optimiser")
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, beside its `step`


class DamagedCheckpoint(UserError):
    """A checkpoint that cannot be read, or is not what was written."""


@dataclass(frozen=True)
class TrainingState:
    """Where a run stands: `iteration` iterations and `updates` optimiser steps are done.

    `policy` and `prompts` (a digest) say what it was trained with; `best_iteration` has the best evaluation's margin.
    """

    iteration: int = 0
    updates: int = 0
    policy: str = ""
    prompts: str = ""
    best_iteration: int = 0
    best_margin: float = float("-inf")


@dataclass(frozen=True)
class Snapshot:
    """A training state with its tensors on the CPU, by the name of their file."""

    state: TrainingState
    tensors: dict[str, dict[str, Tensor]] = field(repr=False)


def capture(state: TrainingState, update: PolicyUpdate) -> Snapshot:
    """A copy of the LoRA, its average and the optimiser's moments as they are now.

    Raises UserError when one of them holds a number that is not finite.
    """
    moments = {
        f"{name}|{key}": torch.as_tensor(value)
        for name, parameter in update.parameters.items()
        for key, value in update.optimiser.state.get(parameter, {}).items()
    }
    tensors = {"lora": dict(update.parameters), "ema": update.ema.average, "optimiser": moments}
    for file, own in tensors.items():
        if bad := _not_finite(own):
            raise UserError(
                f"after iteration {state.iteration} the {file} holds numbers that are not finite in {bad}; nothing was "
                "saved. Lower optim.learning_rate, then resume from the last checkpoint"
            )
    copied = {file: {n: _copy(t) for n, t in own.items()} for file, own in tensors.items()}
    return Snapshot(state, copied)


def _copy(tensor: Tensor) -> Tensor:
    own = tensor.detach()
    return own.clone(memory_format=torch.contiguous_format) if own.device.type == "cpu" else own.cpu().contiguous()


def _not_finite(tensors: dict[str, Tensor]) -> str | None:
    """One of them with a number that is not finite. They are checked where they are, and a GPU is waited for once."""
    found: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found.setdefault(tensor.device, {})[name] = torch.isfinite(tensor.detach()).all()
    for flags in found.values():
        for name, finite in zip(flags, torch.stack([*flags.values()]).tolist(), strict=True):
            if not finite:
                return name
    return None


def restore(snapshot: Snapshot, update: PolicyUpdate) -> None:
    """Make the parameters, their average and the optimiser what the snapshot holds."""
    with torch.no_grad():
        for name, parameter in update.parameters.items():
            parameter.copy_(snapshot.tensors["lora"][name])
            parameter.grad = None
            moments = snapshot.tensors["optimiser"]
            own = {key.split("|")[1]: value for key, value in moments.items() if key.split("|")[0] == name}
            update.optimiser.state.pop(parameter, None)
            if own:
                # AdamW counts its steps on the CPU, and keeps its moments beside the parameter.
                own = {k: v.clone() if k == "step" else v.to(parameter.device, copy=True) for k, v in own.items()}
                update.optimiser.state[parameter] = own
    update.ema.load_state_dict(snapshot.tensors["ema"])


def save_checkpoint(root: Path, snapshot: Snapshot) -> Path:
    """Write `root/<iteration>` aside, sync it to disk and rename it. Raises UserError when the disk is full."""
    folder = root / f"{snapshot.state.iteration:06d}"
    with atomic_folder(folder) as aside:
        for file in FILES:
            save_file(snapshot.tensors[file], aside / f"{file}.safetensors")
        digests = {"state": _state_digest(snapshot.state)}
        digests |= {file: _sha256(aside / f"{file}.safetensors") for file in FILES}
        written = asdict(snapshot.state) | {"sha256": digests}
        (aside / "progress.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    return folder


def read_state(folder: Path) -> tuple[TrainingState, dict[str, str]]:
    """The training state of a checkpoint, and the digests of its files. Raises DamagedCheckpoint."""
    try:
        values = json.loads(read_regular(folder / "progress.json"))
        digests = values.pop("sha256")
        state = TrainingState(**values)
        numbers = (state.iteration, state.updates, state.best_iteration)
        texts = (state.policy, state.prompts)
        if (
            not all(type(n) is int and n >= 0 for n in numbers)
            or not all(isinstance(text, str) for text in texts)
            or type(state.best_margin) not in (int, float)
            or math.isnan(state.best_margin)
            or state.best_iteration > state.iteration
            or not isinstance(digests, dict)
            or set(digests) != {"state", *FILES}
        ):
            raise ValueError("a value has another type than expected")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"checkpoint {folder} cannot be read ({type(error).__name__}: {error})") from error
    if state.iteration != int(folder.name):
        raise DamagedCheckpoint(f"checkpoint {folder} says that it is of iteration {state.iteration}")
    if digests["state"] != _state_digest(state):
        raise DamagedCheckpoint(f"checkpoint {folder} is damaged: progress.json is not what was written")
    return state, digests


def load_checkpoint(folder: Path, policy: str, prompts: str, update: PolicyUpdate) -> TrainingState:
    """Make `update` what the checkpoint holds.

    Raises DamagedCheckpoint for one that cannot be read or was changed since, UserError for one of another policy,
    prompt set or rank; nothing is changed then.
    """
    state, digests = read_state(folder)
    if state.policy != policy:
        raise UserError(
            f"checkpoint {folder} belongs to the policy `{state.policy}`, this run trains `{policy}`: resume with the "
            "policy it was made with, or start a new run"
        )
    if state.prompts != prompts:
        raise UserError(
            f"checkpoint {folder} was made with another prompt set (rows or pictures changed since): put the old files "
            "back, or start a new run with --start-lora and this run's export"
        )
    tensors = {}
    for file in FILES:
        path = folder / f"{file}.safetensors"
        try:
            if _sha256(path) != digests[file]:
                raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {path.name} is not what was written")
            tensors[file] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise DamagedCheckpoint(f"checkpoint {folder} cannot be read ({error})") from error
    shapes = {n: p.shape for n, p in update.parameters.items()}
    if any({n: t.shape for n, t in tensors[file].items()} != shapes for file in ("lora", "ema")):
        raise UserError(
            f"checkpoint {folder} does not fit this policy's LoRA: its layers or rank differ; resume with the policy "
            "it was made with, or start a new run"
        )
    if problem := _problem(state, tensors, update):
        raise DamagedCheckpoint(f"checkpoint {folder} is damaged: {problem}")
    restore(Snapshot(state, tensors), update)
    return state


def load_newest(run: RunFolder, policy: str, prompts: str, update: PolicyUpdate) -> tuple[TrainingState, str]:
    """The newest checkpoint that can be read, and what to report about newer ones that cannot (else empty).

    Damaged ones are renamed to `<iteration>.damaged`. Raises UserError as `load_checkpoint`, or when none can be read.
    """
    damaged: dict[Path, str] = {}
    for folder in reversed(run.checkpoints()):
        try:
            state = load_checkpoint(folder, policy, prompts, update)
        except DamagedCheckpoint as error:
            damaged[folder] = str(error)
            continue
        # One process renames: another one would remove what it has just set aside.
        for broken in damaged if update.ranks.is_main else ():
            _set_aside(broken)
        said = "; ".join(damaged.values())
        return state, f"{said}. Resumed from iteration {state.iteration}" if damaged else ""
    if damaged:
        said = "; ".join(damaged.values())
        raise UserError(f"run {run.id} has no checkpoint that can be read: {said}. Start a new run")
    raise UserError(f"run {run.id} has no checkpoint to resume from; start it again with `train`")


def prune(run: RunFolder, keep: int, spare: int) -> None:
    """Delete all but the `keep` newest checkpoints and that of iteration `spare`."""
    for folder in run.checkpoints()[:-keep]:
        if int(folder.name) != spare:
            shutil.rmtree(folder, ignore_errors=True)


def _set_aside(folder: Path) -> None:
    target = folder.with_name(f"{folder.name}.damaged")
    remove(target)
    folder.rename(target)


def _problem(state: TrainingState, tensors: dict[str, dict[str, Tensor]], update: PolicyUpdate) -> str:
    """What cannot be resumed from in tensors whose digests are right; empty when nothing is wrong."""
    expected = {}
    for name, parameter in update.parameters.items() if state.updates else ():
        expected |= {f"{name}|{key}": parameter.shape for key in MOMENTS} | {f"{name}|step": torch.Size()}
    moments = tensors["optimiser"]
    if wrong := sorted(moments.keys() ^ expected.keys()):
        return f"the optimiser's moments do not fit the LoRA; first difference: {wrong[0]}"
    for name, tensor in moments.items():
        if tensor.shape != expected[name]:
            return f"the optimiser's {name} has the shape {list(tensor.shape)}, expected: {list(expected[name])}"
        if name.endswith("|step") and tensor.item() != state.updates:
            return f"the optimiser's {name} is {tensor.item():g} after {state.updates} updates"
    for file, own in tensors.items():
        for name, tensor in own.items():
            if tensor.dtype != torch.float32 or not tensor.isfinite().all():
                return f"the {file} holds {name} of type {tensor.dtype}, or numbers in it that are not finite"
            if name.endswith("|exp_avg_sq") and (tensor < 0).any():
                return f"the optimiser's {name} is negative"
    return ""


def _state_digest(state: TrainingState) -> str:
    return hashlib.sha256(json.dumps(asdict(state), sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "there is no such file", str(path))
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
