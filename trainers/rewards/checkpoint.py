"""The weights of an identity reward: reading them from a checkpoint's files, merging them into the base model."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import UserError, shorten
from ..weights import is_finite
from .config_files import AdapterFile, ModelSection
from .folder import ADAPTER, UNPACK, Checkpoint
from .model import RewardModel
from .names import inner_name
from .tensors import read_tensors

OTHER_BASE = "give the base model it was trained on"
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")


@dataclass(frozen=True)
class RewardWeights:
    """A checkpoint's weights by their names in `RewardModel`.

    `full` replace the base model's; the LoRA's factors `down` [r, in] and `up` [out, r] are merged into it with
    `scale`.
    """

    folder: Path
    full: dict[str, Tensor]
    down: dict[str, Tensor]
    up: dict[str, Tensor]
    scale: float


def read_weights(checkpoint: Checkpoint) -> RewardWeights:
    """Read a checkpoint's files. Raises UserError for files that are missing, broken, or no plain LoRA."""
    folder = checkpoint.weights
    source = checkpoint.single or folder / ADAPTER
    adapter = read_tensors(source)
    full = {} if checkpoint.single else _by_inner_name(read_tensors(_full_file(folder)), folder)
    # As the reference loads them: what is in both files is taken from the adapter's.
    full |= _by_inner_name({key: value for key, value in adapter.items() if "lora_" not in key}, folder)
    full.pop("lm_head.weight", None)
    factors: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    for key, value in adapter.items():
        if "lora_" not in key:
            continue
        if checkpoint.adapter is None:
            raise UserError(
                f"{source} holds {key}, and {checkpoint.folder / 'model_config.json'} has no peft_lora_config with "
                f"lora_r and lora_alpha; {UNPACK}"
            )
        rank, match = checkpoint.adapter.r, FACTOR.fullmatch(key)
        if match is None:
            raise UserError(f"{source} holds {key}, which a plain LoRA does not have; {UNPACK}")
        factors[match["side"]] |= _by_inner_name({match["module"] + ".weight": value}, folder, factors[match["side"]])
        if value.ndim != 2 or value.shape[0 if match["side"] == "A" else 1] != rank:
            raise UserError(
                f"{source} holds {key} of shape {list(value.shape)}, which does not fit the rank {rank} of "
                f"adapter_config.json; {UNPACK}"
            )
    _refuse_incomplete(folder, factors["A"].keys() ^ factors["B"].keys(), "both LoRA factors of ")
    return RewardWeights(
        folder, full, factors["A"], factors["B"], checkpoint.adapter.scale if checkpoint.adapter else 1.0
    )


@torch.no_grad()
def merge_weights(model: RewardModel, checkpoint: Checkpoint, weights: RewardWeights) -> None:
    """Put a checkpoint's weights over its base model, in place, as the reference loads them.

    The LoRA is merged into the weights, with the sum in float32. Raises UserError before any change when the weights
    are incomplete or made for another base model, and when a sum is too large for the type of the weights.
    """
    own = dict(model.named_parameters())
    folder, down, up = weights.folder, weights.down, weights.up
    _refuse_incomplete(folder, _full_names(checkpoint.config.model, own) - weights.full.keys(), "")
    _refuse_incomplete(folder, _lora_names(checkpoint.adapter, own) - down.keys(), "both LoRA factors of ")
    for name, value in weights.full.items():
        _require_fitting(own, name, value.shape, folder)
    for name in down:
        _require_fitting(own, name, (up[name].shape[0], down[name].shape[1]), folder)
    for name, value in weights.full.items():
        own[name].copy_(value)
    for name in down:
        weight = own[name]
        delta = up[name].to(weight.device).float() @ down[name].to(weight.device).float()
        weight.copy_(weight.float() + weights.scale * delta)
        if not is_finite(weight):
            raise UserError(f"the LoRA of {folder} makes {name} infinite; {UNPACK}")


def _full_file(folder: Path) -> Path:
    for name in ("non_lora_state_dict.safetensors", "non_lora_state_dict.pth"):
        if os.path.isfile(folder / name):
            return folder / name
    raise UserError(f"{folder} has no non_lora_state_dict.pth; {UNPACK}")


def _by_inner_name(tensors: Mapping[str, Tensor], folder: Path, known: Iterable[str] = ()) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = inner_name(key)
        if name in found or name in known:
            raise UserError(f"{folder} holds {name} twice, in two spellings; {UNPACK}")
        found[name] = value
    return found


def _full_names(config: ModelSection, own: Iterable[str]) -> set[str]:
    """The weights that a checkpoint holds in full, by the configuration of its training."""
    trained = {
        name
        for name in own
        if name.startswith("visual.")
        and (config.tune_merger if name.startswith("visual.merger.") else not config.freeze_vision_tower)
    }
    return trained | {"rm_head.weight", "language_model.embed_tokens.weight"}


def _lora_names(config: AdapterFile | None, own: Iterable[str]) -> set[str]:
    """The weights that the adapter's configuration lists; the released one lists every module by its whole name."""
    listed = config.target_modules if config else None
    return {inner_name(f"{module}.weight") for module in listed} & set(own) if isinstance(listed, list) else set()


def _refuse_incomplete(folder: Path, lacking: Iterable[str], what: str) -> None:
    if names := shorten(lacking):
        raise UserError(
            f"{folder} is not a complete identity reward: it lacks {what}{names}; {UNPACK}, and {OTHER_BASE}"
        )


def _require_fitting(own: Mapping[str, nn.Parameter], name: str, shape: Iterable[int], folder: Path) -> None:
    if name not in own:
        raise UserError(f"{folder} holds {name}, which its base model lacks; {OTHER_BASE}")
    if tuple(own[name].shape) != tuple(shape):
        raise UserError(
            f"{name} is {list(shape)} in {folder} but {list(own[name].shape)} in the base model; {OTHER_BASE}"
        )
