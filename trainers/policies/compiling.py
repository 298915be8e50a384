"""Compiled blocks of a transformer: fewer, larger kernels."""

from __future__ import annotations

from typing import Literal

import torch
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import nn

from .attention import CompiledAttention

LEAST_PARAMETERS = 100_000_000
"""Smaller transformers do not earn back the minutes that a compilation can take."""
VARIANTS = 64
"""Compiled forms of one block: with and without gradient, LoRA and FP8, for one size and for any."""


def compile_blocks(transformer: nn.Module, wanted: Literal["auto", "always", "never"]) -> str:
    """Compile the repeated blocks (diffusers' regional compilation), or say why not; returns that reason, or "".

    They are compiled at their first use, once for all blocks of a kind. A second size is compiled for any size.
    Inductor keeps what it compiled on disk, so that another process starts sooner.
    """
    reason = (
        "" if wanted == "always" else reason_against(transformer) if wanted == "auto" else "policy.compile is `never`"
    )
    if not reason:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
        for module in transformer.modules():
            if isinstance(module, WanAttention):
                module.set_processor(CompiledAttention())
        transformer.compile_repeated_blocks()
    return reason


def reason_against(transformer: nn.Module) -> str:
    """Why compiling would not pay here, or ""."""
    from torch.utils._triton import has_triton

    device = next(transformer.parameters()).device
    if device.type != "cuda":
        return f"the policy runs on {device.type}, where compiled blocks are not faster"
    if not has_triton():
        return "Triton is not installed or does not support this GPU"
    if sum(p.numel() for p in transformer.parameters()) < LEAST_PARAMETERS:
        return "the policy is too small to earn the time back"
    return ""
