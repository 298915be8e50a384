"""The released layout of an identity reward on disk, read and written.

`model_config.json`, and per checkpoint `checkpoint-N/adapter_model.safetensors` with `adapter_config.json` (LoRA of the
language model) and `non_lora_state_dict.pth` or `.safetensors` (vision tower, token embedding, `rm_head`).
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import UserError, shorten
from .model import RewardModel

PREFIX = "base_model.model."
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Checkpoint:
    """Where the parts of a reward lie, and its configuration."""

    folder: Path
    config: dict[str, Any]
    weights: Path

    @property
    def frames(self) -> float:
        return float(self.config.get("data_config", {}).get("num_frames") or 5.0)

    @property
    def max_pixels(self) -> int:
        return int(self.config.get("data_config", {}).get("max_frame_pixels") or 480 * 832)


def find_checkpoint(folder: Path | str) -> Checkpoint:
    """The newest complete `checkpoint-N` of a reward's folder. Raises UserError naming what is missing."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"The identity reward {folder} does not exist: give the folder that holds model_config.json.")
    config = _read_json(folder / "model_config.json", "give the folder of the released reward, or train one")
    numbered = sorted(
        (int(match[1]), child)
        for child in folder.iterdir()
        if (match := re.fullmatch(r"checkpoint-(\d+)", child.name)) and (child / "adapter_model.safetensors").is_file()
    )
    if not numbered:
        raise UserError(
            f"{folder} has no checkpoint-N with adapter_model.safetensors: unpack the whole released archive."
        )
    return Checkpoint(folder, config, numbered[-1][1])


def find_base(checkpoint: Checkpoint, base_model: Path | str | None = None) -> Path:
    """The base model's folder: `base_model` if given, else `model_name_or_path` beside or above the checkpoint, as it is,
    or in the local Hugging Face cache. Never goes to the network. Raises UserError."""
    if base_model is not None:
        if (Path(base_model) / "config.json").is_file():
            return Path(base_model)
        raise UserError(f"The base model {base_model} holds no config.json: give a Qwen2.5-VL folder.")
    name = checkpoint.config.get("model_config", {}).get("model_name_or_path")
    if not name:
        raise UserError(f"{checkpoint.folder / 'model_config.json'} names no base model: give one (base_model).")
    for candidate in (checkpoint.folder / name, checkpoint.folder.parent / name, Path(name)):
        if (candidate / "config.json").is_file():
            return candidate
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(name, local_files_only=True))
        except (OSError, ValueError):
            pass
    raise UserError(
        f"The base model {name!r} of the reward {checkpoint.folder} is not on this machine: download it "
        f"(hf download {name}), or give its folder (base_model)."
    )


def read_weights(model: RewardModel, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights over its base model, in place, as the reference loads them.

    The LoRA is merged into the weights, with the sum in float32. Raises UserError for files that are missing, unreadable,
    incomplete, or made for another model.
    """
    folder = checkpoint.weights
    config = _read_json(folder / "adapter_config.json", "unpack the whole released archive")
    scale = _lora_scale(config, folder)
    adapter = _load_tensors(folder / "adapter_model.safetensors")
    full = {_inner_name(k): v for k, v in _load_non_lora(folder).items()}
    full.update({_inner_name(k): v for k, v in adapter.items() if "lora_" not in k})
    full.pop("lm_head.weight", None)
    own = dict(model.named_parameters())
    down, up = (
        {_inner_name(re.sub(rf"\.{side}|\.default", "", k)): v for k, v in adapter.items() if side in k}
        for side in ("lora_A", "lora_B")
    )
    changed = _lora_names(config, own) | down.keys() | up.keys()
    _refuse_incomplete(folder, _full_names(checkpoint.config, own) - full.keys(), "")
    _refuse_incomplete(folder, changed - (down.keys() & up.keys()), "both LoRA factors of ")
    with torch.no_grad():
        for name, value in full.items():
            _parameter(own, name, value.shape, folder).copy_(value)
        for name in down:
            weight = _parameter(own, name, (up[name].shape[0], down[name].shape[1]), folder)
            delta = up[name].to(weight.device).float() @ down[name].to(weight.device).float()
            weight.copy_(weight.float() + scale * delta)


def _full_names(config: Mapping[str, Any], own: Iterable[str]) -> set[str]:
    """The weights that a checkpoint holds in full, by the configuration of its training."""
    told = config.get("model_config", {})
    tower, merger = told.get("freeze_vision_tower") is False, told.get("tune_merger") is True
    trained = {
        name for name in own if name.startswith("visual.") and (merger if name.startswith("visual.merger.") else tower)
    }
    return trained | {"rm_head.weight", "language_model.embed_tokens.weight"}


def _lora_names(config: Mapping[str, Any], own: Iterable[str]) -> set[str]:
    """The weights that the adapter's configuration lists as changed; the released ones list every module by its whole name."""
    listed = config.get("target_modules")
    return {_inner_name(f"{module}.weight") for module in listed} & set(own) if isinstance(listed, list) else set()


def _refuse_incomplete(folder: Path, lacking: Iterable[str], what: str) -> None:
    if told := shorten(lacking):
        raise UserError(
            f"{folder} is no complete identity reward: it lacks {what}{told}. Unpack the whole released "
            "archive, and give the base model it was trained on."
        )


def _lora_scale(config: Mapping[str, Any], folder: Path) -> float:
    if config.get("peft_type") != "LORA" or not (config.get("r") and config.get("lora_alpha")):
        raise UserError(f"{folder / 'adapter_config.json'} describes no LoRA: it is not an identity reward.")
    special = [k for k in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern") if config.get(k)]
    if special:
        raise UserError(
            f"{folder / 'adapter_config.json'} uses {', '.join(special)}, which identity rewards do not have."
        )
    return config["lora_alpha"] / config["r"]


def _parameter(own: dict[str, torch.nn.Parameter], name: str, shape: Any, folder: Path) -> torch.nn.Parameter:
    if name not in own:
        raise UserError(f"{folder} holds {name}, which its base model lacks: give the base model it was trained on.")
    if tuple(own[name].shape) != tuple(shape):
        raise UserError(
            f"{name} is {list(shape)} in {folder} but {list(own[name].shape)} in the base model: give the base model it "
            "was trained on."
        )
    return own[name]


def _inner_name(key: str) -> str:
    """The name in `RewardModel` of a weight named by any version of transformers, with or without PEFT's prefix."""
    key = key.removeprefix(PREFIX).removeprefix("model.")
    if key.split(".")[0] in ("embed_tokens", "layers", "norm"):
        return "language_model." + key
    return key


def released_name(name: str) -> str:
    """The name in the released files (those of transformers 4.51) of a weight of `RewardModel`."""
    return re.sub(r"^language_model\.", "model.", name)


def write_checkpoint(
    model: RewardModel, folder: Path, step: int, config: Mapping[str, Any], storage: torch.dtype
) -> None:
    """Write a model whose language model carries PEFT LoRA layers as `folder/checkpoint-<step>` in the released layout.

    `config` is `model_config.json`'s content. Weights are stored as `storage`.
    """
    target = folder / f"checkpoint-{step}"
    target.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().to("cpu", storage).contiguous() for k, v in model.state_dict().items()}
    adapter, full, targets = {}, {}, set()
    for name, value in state.items():
        if "lora_" in name:
            key = released_name(name).replace(".default", "")
            adapter[PREFIX + key] = value
            targets.add(key.split(".lora_")[0])
        elif name.startswith(("visual.", "rm_head.", "language_model.embed_tokens.")):
            full[PREFIX + released_name(name)] = value
    lora = config["peft_lora_config"]
    described = {
        "peft_type": "LORA",
        "task_type": lora["lora_task_type"],
        "r": lora["lora_r"],
        "lora_alpha": lora["lora_alpha"],
        "lora_dropout": lora["lora_dropout"],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "base_model_name_or_path": config["model_config"]["model_name_or_path"],
        "target_modules": sorted(targets),
        "use_dora": False,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "revision": None,
    }
    save_file(adapter, target / "adapter_model.safetensors", metadata={"format": "pt"})
    save_file(full, target / "non_lora_state_dict.safetensors", metadata={"format": "pt"})
    _write_json(target / "adapter_config.json", described)
    _write_json(folder / "model_config.json", dict(config))


def write_base(model: RewardModel, source: Path, folder: Path, storage: torch.dtype) -> None:
    """Write a model without LoRA as a base model's folder: weights under their original names, the rest from `source`.

    The reward token's row goes with the embedding, whose length in the configuration follows it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        released_name(k): v.detach().to("cpu", storage).contiguous()
        for k, v in model.state_dict().items()
        if not k.startswith("rm_head.")
    }
    for file in source.iterdir():
        if file.suffix == ".json" and file.name != "model.safetensors.index.json" and folder != source:
            (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    rows = weights["model.embed_tokens.weight"].shape[0]
    (config.get("text_config") or config)["vocab_size"] = rows
    _write_json(folder / "config.json", config)
    temporary = folder / "model.safetensors.partial"
    save_file(weights, temporary, metadata={"format": "pt"})
    os.replace(temporary, folder / "model.safetensors")


def _load_non_lora(folder: Path) -> dict[str, Tensor]:
    for name in ("non_lora_state_dict.safetensors", "non_lora_state_dict.pth"):
        if (folder / name).is_file():
            return _load_tensors(folder / name)
    raise UserError(f"{folder} has no non_lora_state_dict.pth: unpack the whole released archive.")


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds more than tensors and was not opened: download it again from its source."
        ) from None
    except (OSError, SafetensorError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}): download it again from its source.") from error
    if not (isinstance(tensors, dict) and all(isinstance(v, Tensor) for v in tensors.values())):
        raise UserError(f"{path} is not a plain dictionary of tensors: download it again from its source.")
    return tensors


def _read_json(path: Path, remedy: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {remedy}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): {remedy}.") from None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
