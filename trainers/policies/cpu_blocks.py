"""Parts of Wan's transformer blocks that are faster on a CPU in float32; elsewhere they compute as diffusers' do."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers.models.activations import GELU
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor, nn

GELU_LINEAR, GELU_CUBIC = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715


class CpuAttention(WanAttnProcessor):
    """diffusers' attention; on a CPU pairs rotate as complex numbers, and texts that are equal are projected once."""

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Self-attention of hidden_states [B, tokens, dim], or their attention to encoder_hidden_states."""
        if not _on_cpu(hidden_states) or attn.add_k_proj is not None or attention_mask is not None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        source, rows = hidden_states, None
        if encoder_hidden_states is not None:
            source, rows = _distinct(encoder_hidden_states)
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(source)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(source).unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            turn = torch.complex(rotary_emb[0][..., 0::2], rotary_emb[1][..., 1::2])
            query, key = _rotated(query, turn), _rotated(key, turn)
        if rows is not None:
            key, value = key[rows], value[rows]
        out = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))


class CpuGelu(nn.Module):
    """diffusers' linear layer with GELU in its tanh form; the same `proj`."""

    def __init__(self, original: GELU) -> None:
        super().__init__()
        self.proj = original.proj

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        return _SigmoidGelu.apply(x) if _on_cpu(x) else F.gelu(x, approximate="tanh")


class _SigmoidGelu(torch.autograd.Function):
    """GELU's tanh form by (1 + tanh(y)) / 2 = sigmoid(2 y): torch's tanh takes longer than all the rest."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square().mul_(GELU_CUBIC).add_(GELU_LINEAR).mul_(x).sigmoid_().mul_(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return torch.ops.aten.gelu_backward(gradient, *ctx.saved_tensors, approximate="tanh")


def use_cpu_blocks(transformer: nn.Module) -> None:
    """Give the blocks of a Wan transformer of diffusers these parts, in place; the weights keep their names."""
    for name, module in list(transformer.named_modules()):
        if isinstance(module, WanAttention):
            module.set_processor(CpuAttention())
        elif type(module) is GELU and module.approximate == "tanh" and ".ffn." in name:
            transformer.set_submodule(name, CpuGelu(module))


def _on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32


def _rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary embedding of neighbouring pairs of x [B, tokens, heads, dim] by complex `turn` [1, tokens, 1, dim/2]."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turn).flatten(-2)


def _distinct(texts: Tensor) -> tuple[Tensor, Tensor | None]:
    """`texts` [B, tokens, dim] without those that repeat their neighbour, and the place of each of the B in them.

    A group's videos, which follow one another, have one text. Places are None where nothing repeats.
    """
    repeats = (texts[1:] == texts[:-1]).flatten(1).all(1)
    if not repeats.any():
        return texts, None
    new = torch.cat([repeats.new_ones(1), ~repeats])
    return texts[new], new.cumsum(0) - 1
