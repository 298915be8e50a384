"""A policy made ready for training."""

from __future__ import annotations

import torch

from ..config import TrainConfig
from ..diffusion.noise import derive_seed
from ..lora.inject import add_lora
from ..memory.plan import GIB
from ..policies.base import Policy
from ..policies.compiling import compile_blocks
from ..policies.recompute import Recompute


def prepare(policy: Policy, config: TrainConfig, device: torch.device | None = None) -> str:
    """Add the LoRA, choose what the backward pass recomputes, compile the blocks; returns why not compiled, or "".

    `device`: where the policy will compute, if not where it is now.
    """
    transformer = policy.transformer
    limit = None if config.memory.limit is None else int(config.memory.limit * GIB)
    add_lora(transformer, config.lora.rank, config.lora.alpha, derive_seed(config.seed, "lora"))
    transformer.enable_gradient_checkpointing(Recompute(transformer, config.optim.gradient_checkpointing, limit))
    return compile_blocks(transformer, config.policy.compile, device)
