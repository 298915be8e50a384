"""Compiled blocks of a transformer: fewer, larger kernels."""

from __future__ import annotations

import os
import shutil
from typing import Literal

import torch
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import nn
from torch.utils._triton import has_triton

from ..errors import UserError
from .attention import CompiledAttention
from .stored import holds_float8

LEAST_PARAMETERS = 100_000_000
"""Smaller transformers do not earn back the minutes that a compilation can take."""
VARIANTS = 64
"""Compiled forms of one block: with and without gradient, LoRA and FP8, for one size and for any."""


def compile_blocks(
    transformer: nn.Module, wanted: Literal["auto", "always", "never"], device: torch.device | None = None
) -> str:
    """Compile the repeated blocks (diffusers' regional compilation), or say why not; returns that reason, or "".

    `device`: where they will compute, if not where they are now. Raises UserError for `always` on a CPU: kernels that
    PyTorch 2.13 made there for blocks of VACE with 12 tokens of 256 channels, loops fused side by side and vectorised,
    had wrong gradients, and those for TinyWorld's size had right ones.

    They are compiled at their first use, once for all blocks of a kind. A second size is compiled for any size.
    Inductor keeps what it compiled on disk, so that another process starts sooner.
    """
    if wanted == "always" and (device.type if device else device_type(transformer)) == "cpu":
        raise UserError(
            "compile `always` needs a GPU: on a CPU PyTorch's compiled blocks of VACE can have wrong gradients; set "
            "policy.compile to `auto`"
        )
    reason = "" if wanted != "never" else "policy.compile is `never`"
    if wanted == "auto":
        reason = reason_against(transformer, device)
    if not reason:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
        # Where compiling fails after all, the blocks compute uncompiled; asked for, the failure is an error.
        torch._dynamo.config.suppress_errors = wanted == "auto"
        for module in transformer.modules():
            if isinstance(module, WanAttention):
                module.set_processor(CompiledAttention())
        transformer.compile_repeated_blocks()
    return reason


def reason_against(transformer: nn.Module, device: torch.device | None = None) -> str:
    """Why compiling would not pay here, or ""."""
    kind = device.type if device else device_type(transformer)
    if kind != "cuda":
        return f"the policy runs on {kind}, where compiled blocks are not faster"
    if holds_float8(transformer) and torch.cuda.get_device_capability(device) < (8, 9):
        return "its weights are FP8 as stored (policy.weights), which Triton cannot convert on this GPU"
    if not has_triton():
        return "Triton is not installed or does not support this GPU"
    if os.name == "posix" and not any(map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))):
        return "Triton needs a C compiler, and there is none: install gcc"
    if sum(p.numel() for p in transformer.parameters()) < LEAST_PARAMETERS:
        return "the policy is too small to earn the time back"
    return ""


def device_type(transformer: nn.Module) -> str:
    return next(transformer.parameters()).device.type
