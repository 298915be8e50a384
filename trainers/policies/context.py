"""Context parallelism: the tokens of a video are split over a group of processes, which compute its passes together.

Everything but self-attention works on tokens alone. There each process gathers the keys and values of all tokens, and
answers its own queries. diffusers has this for some classes by a plan (`_cp_plan`), not for VACE's, and requires a
number of tokens that the group divides; here the last process's tokens are padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import CompiledAttention
from .blocks import running_blocks


@dataclass
class Context:
    """A group of processes that compute one velocity, seen from one of them.

    `rank`, `size`: this process's place in it, and their number. `tokens`: of the sequence in the present pass.
    """

    group: dist.ProcessGroup
    rank: int
    size: int
    tokens: int = 0

    def part(self, sequence: Tensor, axis: int) -> Tensor:
        """This process's tokens of a sequence along `axis`; equally many in each process, padded with zeros."""
        self.tokens = sequence.shape[axis]
        length = -(-self.tokens // self.size)
        start = min(self.rank * length, self.tokens)
        own = sequence.narrow(axis, start, min(length, self.tokens - start))
        missing = length - own.shape[axis]
        return F.pad(own, [0, 0] * (sequence.ndim - 1 - axis) + [0, missing]) if missing else own

    @torch.compiler.disable
    def gather_keys(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of all tokens from those of this process's, [B, tokens, heads, dim] each.

        Their gradients are summed over the processes, whose queries they all answer.
        """
        gathered = _GatherKeys.apply(torch.stack([key, value]), self)
        return gathered[0, :, : self.tokens], gathered[1, :, : self.tokens]

    @torch.compiler.disable
    def gather_output(self, output: Tensor) -> Tensor:
        """The output [B, tokens, channels] of all tokens. Every process continues with the same loss: its part of the
        gradient is already whole.
        """
        return _GatherOutput.apply(output, self)[:, : self.tokens]


def split_tokens(transformer: nn.Module, context: Context) -> None:
    """Make a Wan transformer of diffusers compute its passes together with the other processes of `context`, in place.

    Inputs and output are those of the whole video, the same in every process. The gradients of its parameters are those
    of this process's tokens: their sum over the group is the gradient.
    """
    for name in ("patch_embedding", "vace_patch_embedding"):
        if hasattr(transformer, name):
            getattr(transformer, name).register_forward_hook(lambda _module, _inputs, grid: _split(grid, context))
    transformer.rope.register_forward_hook(
        lambda _module, _inputs, turns: tuple(context.part(turn, 1) for turn in turns)
    )
    for block in running_blocks(transformer):
        block.attn1.set_processor(CompiledAttention(context.gather_keys))
    transformer.proj_out.register_forward_hook(lambda _module, _inputs, output: context.gather_output(output))


def _split(grid: Tensor, context: Context) -> Tensor:
    """This process's tokens of [B, dim, f, h, w] as [B, dim, tokens, 1, 1]: the transformer flattens the last three."""
    return context.part(grid.flatten(2), 2)[..., None, None]


class _GatherKeys(torch.autograd.Function):
    """[2, B, tokens, heads, dim] of each process -> those of all, in order."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, context: Context) -> Tensor:
        ctx.context = context
        return _gathered(own, 2, context)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        context = ctx.context
        parts = gradient.unflatten(2, (context.size, -1)).movedim(2, 0).contiguous()
        own = torch.empty_like(parts[0])
        # Newer versions of PyTorch have another name for it, and warn of the old one.
        reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
        reduce_scatter(own, parts.flatten(0, 1), group=context.group)
        return own, None


class _GatherOutput(torch.autograd.Function):
    """[B, tokens, channels] of each process -> those of all, in order; the gradient is not summed."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, context: Context) -> Tensor:
        ctx.context = context
        return _gathered(own, 1, context)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        context = ctx.context
        return gradient.unflatten(1, (context.size, -1))[:, context.rank], None


def _gathered(own: Tensor, axis: int, context: Context) -> Tensor:
    """The tensors of all processes, one after the other along `axis`."""
    parts = own.new_empty(context.size * own.shape[0], *own.shape[1:])
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    all_gather(parts, own.contiguous(), group=context.group)
    return parts.unflatten(0, (context.size, -1)).movedim(0, axis).flatten(axis, axis + 1)
