"""How a reward is trained: the settings, and the recipes by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch


@dataclass(frozen=True)
class RewardTraining:
    """How a reward is trained. Defaults are the released reward's own where it states them (its `model_config.json`).

    `steps` and `seconds` bound the training, whichever comes first. A step is an update on `batch_size` pairs, which
    are computed `micro_batch` at a time (0: all together). `warmup` and `decay` are shares of the training: the rate
    rises linearly, stays, and falls linearly to zero over the last `decay`. `vision`: the vision tower is trained in
    full, as the released reward's was, or by LoRA, which needs a third of the memory; its merger is always trained.
    `frozen` is the dtype of the weights that are not trained, `storage` that of the files, to which the trained model
    is rounded before it is evaluated: the files score as the model did. `recompute` computes activations again in the
    backward pass in place of keeping them. `evaluate_every` steps the held-out pairs are measured; after `patience`
    measurements without a lower loss the training ends (0: never), and the best of them is kept. Every `save_every`
    steps (0: never) the state is saved, from which `resume` continues.
    """

    steps: int
    batch_size: int = 4
    micro_batch: int = 0
    learning_rate: float = 2e-6
    warmup: float = 0.05
    decay: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    rank: int = 64
    alpha: int = 128
    dropout: float = 0.05
    vision: Literal["full", "lora"] = "full"
    theta: float = 5.0
    seed: int = 42
    seconds: float = float("inf")
    mixed_precision: bool = False
    frozen: torch.dtype = torch.float32
    storage: torch.dtype = torch.float32
    recompute: bool = False
    evaluate_every: int = 0
    patience: int = 0
    save_every: int = 0
    pickled: bool = False


RECIPES: dict[str, dict[str, Any]] = {
    # The released reward's: three epochs, a pair at a time, four to an update, a constant rate after the warmup.
    "paper": {
        "epochs": 3.0,
        "batch_size": 4,
        "micro_batch": 1,
        "learning_rate": 2e-6,
        "storage": torch.bfloat16,
        "pickled": True,
    },
    # TinyWorld's base on a few hundred pairs, on a CPU.
    "tiny": {
        "epochs": 1.5,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "warmup": 0.1,
        "decay": 0.7,
        "weight_decay": 0.01,
        "rank": 16,
        "alpha": 32,
        "dropout": 0.0,
        "storage": torch.float16,
    },
}
"""Name -> settings of `RewardTraining`; `epochs` stands for `steps`, which follow from the number of pairs."""
