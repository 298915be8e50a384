"""Sharded blocks: every process of a run holds a part of each frozen block, and gathers whole blocks as they compute.

By PyTorch's FSDP2 (`fully_shard`). accelerate's plugin for it can leave whole modules out, and the factors of a LoRA
lie beside the frozen weight in one module, so it is called here.
"""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Sequence

import torch
from torch import nn


def has_fsdp2() -> bool:
    """Whether PyTorch can shard a part of a module's parameters (2.7 and newer)."""
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:  # older, or built without torch.distributed
        return False
    return "ignored_params" in inspect.signature(fully_shard).parameters


def shard_blocks(transformer: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> None:
    """Split the frozen weights of `blocks`, which run in this order, evenly over all processes, in place.

    A block is gathered before it computes, forward and backward, while the one before still does, and its weights are
    freed after. It computes with the same numbers as before. Trainable parameters (a LoRA) are moved to `device` as
    they are, their gradients are not reduced. All processes must make the same passes. Compiled blocks stay compiled.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    whole = {parameter for parameter in transformer.parameters() if parameter.requires_grad}
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    inside = {parameter for block in blocks for parameter in block.parameters()}
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    # Outputs that are views are dangerous where they are changed in place, which diffusers' transformers do nowhere.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for block in blocks:
        if block._compiled_call_impl is not None:
            # The gathering hooks are left out of what is compiled.
            block._compiled_call_impl = None
            block.forward = torch.compile(block.forward)
        fully_shard(block, mesh=mesh, ignored_params=whole)
    # The transformer itself has nothing to split: it makes its blocks share their streams.
    rest = {parameter for parameter in transformer.parameters() if parameter not in inside}
    fully_shard(transformer, mesh=mesh, ignored_params=whole | rest)
    for block, following in itertools.pairwise(blocks):
        block.set_modules_to_forward_prefetch([following])
