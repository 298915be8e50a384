"""A policy made ready for training."""

from __future__ import annotations

import torch

from ..config import TrainConfig
from ..diffusion.noise import derive_seed
from ..lora.inject import add_lora
from ..memory.plan import GIB
from ..policies.base import Policy
from ..policies.compiling import compile_blocks
from ..policies.context import Context, split_tokens
from ..policies.recompute import Recompute


def prepare(
    policy: Policy, config: TrainConfig, device: torch.device | None = None, context: Context | None = None
) -> str:
    """Add the LoRA, choose what the backward pass recomputes, compile the blocks; returns why not compiled, or "".

    `device`: where the policy will compute, if not where it is now. `context`: the processes that compute with it.
    """
    transformer, share = policy.transformer, config.optim.gradient_checkpointing
    if share == "auto" and context is not None and (device or policy.device).type == "cuda":
        # What is recomputed is gathered again: all processes of a group must choose alike.
        share = 1.0
    limit = None if config.memory.limit is None else int(config.memory.limit * GIB)
    add_lora(transformer, config.lora.rank, config.lora.alpha, derive_seed(config.seed, "lora"))
    transformer.enable_gradient_checkpointing(Recompute(transformer, share, limit))
    reason = compile_blocks(transformer, config.policy.compile, device)
    if context is not None:
        split_tokens(transformer, context)
    return reason
