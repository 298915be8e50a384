"""Writing an identity reward in its released layout, and a base model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_folder, write_atomic
from .folder import ADAPTER
from .model import RewardModel
from .names import PREFIX, released_name

METADATA = {"format": "pt"}


def write_checkpoint(
    model: RewardModel, folder: Path, step: int, config: Mapping[str, Any], storage: torch.dtype, pickled: bool = False
) -> None:
    """Write what is trained of a model with PEFT's LoRA layers as `folder/checkpoint-<step>`, as `storage`.

    `config` is the content of `model_config.json`, which is written last: without it a folder is not a reward.
    `pickled` writes the weights beside the LoRA as `.pth` too, the only form that the published code reads.
    """
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapter, full, targets = {}, {}, set()
    for name, value in _stored(model, storage).items():
        if "lora_" in name:
            key = released_name(name).replace(".default", "")
            adapter[PREFIX + key] = value
            targets.add(key.split(".lora_")[0])
        elif name in trained:
            full[PREFIX + released_name(name)] = value
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder / f"checkpoint-{step}") as target:
        save_file(adapter, target / ADAPTER, metadata=METADATA)
        save_file(full, target / "non_lora_state_dict.safetensors", metadata=METADATA)
        if pickled:
            torch.save(full, target / "non_lora_state_dict.pth")
        write_atomic(target / "adapter_config.json", _json(_adapter_config(config, sorted(targets))))
    write_atomic(folder / "model_config.json", _json(config))


def write_base(model: RewardModel, source: Path, folder: Path, storage: torch.dtype) -> None:
    """Write a model without LoRA as the folder of a base model; all files but the weights come from `source`.

    The reward token's row stays in the embedding, and the vocabulary size in the configuration follows it.
    """
    weights = {
        released_name(name): value for name, value in _stored(model, storage).items() if not name.startswith("rm_head.")
    }
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (config.get("text_config") or config)["vocab_size"] = weights["model.embed_tokens.weight"].shape[0]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as target:
        for file in source.glob("*.json"):
            if file.name not in ("config.json", "model.safetensors.index.json"):
                (target / file.name).write_bytes(file.read_bytes())
        write_atomic(target / "config.json", _json(config))
        save_file(weights, target / "model.safetensors", metadata=METADATA)


def _stored(model: RewardModel, storage: torch.dtype) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", storage).contiguous() for name, value in model.state_dict().items()}


def _adapter_config(config: Mapping[str, Any], targets: list[str]) -> dict[str, Any]:
    lora = config["peft_lora_config"]
    return {
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
        "target_modules": targets,
        "use_dora": False,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
        "revision": None,
    }


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"
