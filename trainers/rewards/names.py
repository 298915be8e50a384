"""Names of a reward's weights: those in files, and those in `RewardModel`."""

from __future__ import annotations

import re

from ..modelfiles.names import WRAPPERS

PREFIX = "base_model.model."
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a language model's block, all of which carry LoRA."""

_WRAPPERS = WRAPPERS - {"model"}  # which is a part of the names here


def inner_name(key: str) -> str:
    """The name in `RewardModel` of a weight named by any version of transformers.

    What PEFT, torch.compile, DDP and FSDP add to it is left out.
    """
    key = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
    key = key.removeprefix(PREFIX).removeprefix("model.").replace(".base_layer.", ".")
    if key.split(".")[0] in ("embed_tokens", "layers", "norm"):
        return "language_model." + key
    return key


def released_name(name: str) -> str:
    """The name in the released files (those of transformers 4.51) of a weight of `RewardModel`."""
    return re.sub(r"^language_model\.", "model.", name)
