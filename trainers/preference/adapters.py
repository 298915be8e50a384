"""Which weights of a reward are trained, and where they start."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import UserError
from ..rewards.checkpoint import read_weights
from ..rewards.config_files import AdapterFile
from ..rewards.folder import find_checkpoint
from ..rewards.model import RewardModel
from ..rewards.names import PROJECTIONS
from .recipe import RewardTraining

VISION_PROJECTIONS = ("qkv", "proj", "gate_proj", "up_proj", "down_proj")
ALWAYS = ("rm_head.", "language_model.embed_tokens.", "visual.merger.")


def adapter_of(start: Path) -> AdapterFile | None:
    """The LoRA of a reward that a training starts from. Raises UserError when the folder holds no reward."""
    return find_checkpoint(start).adapter


def train_by_lora(model: RewardModel, training: RewardTraining) -> None:
    """Freeze the language model but for its token embedding, and give its linear layers LoRA; likewise the vision tower
    where it is trained so. What is frozen gets the dtype `training.frozen`; the rest is float32."""
    from peft import LoraConfig, inject_adapter_in_model

    def inject(module: torch.nn.Module, targets: tuple[str, ...]) -> None:
        config = LoraConfig(
            r=training.rank, lora_alpha=training.alpha, lora_dropout=training.dropout, target_modules=list(targets)
        )
        inject_adapter_in_model(config, module)

    inject(model.language_model, PROJECTIONS)
    trained = ALWAYS
    if training.vision == "lora":
        for block in model.visual.blocks:
            inject(block, VISION_PROJECTIONS)
    else:
        trained += ("visual.",)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or name.startswith(trained))
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else training.frozen)


@torch.no_grad()
def start_from(model: RewardModel, folder: Path) -> None:
    """Put the weights of a reward into a model that `train_by_lora` prepared with its rank and alpha.

    Raises UserError when the reward has weights that this training has not, such as a LoRA of the vision tower.
    """
    weights = read_weights(find_checkpoint(folder))
    own = {name.replace(".base_layer", "").replace(".default", ""): p for name, p in model.named_parameters()}
    given = dict(weights.full)
    for side, factors in (("lora_A", weights.down), ("lora_B", weights.up)):
        given |= {name.removesuffix("weight") + f"{side}.weight": value for name, value in factors.items()}
    for name, value in given.items():
        if name not in own or own[name].shape != value.shape:
            raise UserError(
                f"{folder} holds {name} of shape {list(value.shape)}, which this training does not have; start from a "
                "reward of this base model that was trained in the same way"
            )
        own[name].copy_(value)
