"""Attention of Wan's transformers, written for the compiler."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn


class CompiledAttention:
    """diffusers' WanAttnProcessor for models without image embeddings, with the same numbers.

    Its rotary embedding assigns to no slices, so that the compiler fuses it; uncompiled it is slower.
    `gather` makes of the keys and values of this process's tokens those of all tokens, where several processes share
    them.
    """

    # Names that diffusers' attention modules set.
    _attention_backend = None
    _parallel_config = None

    def __init__(self, gather: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None) -> None:
        self._gather = gather

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Self-attention of hidden_states [B, tokens, dim], or their attention to encoder_hidden_states."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(source)).unflatten(2, (attn.heads, -1))
        value = attn.to_v(source).unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            query, key = rotate(query, *rotary_emb), rotate(key, *rotary_emb)
        if self._gather is not None:
            key, value = self._gather(key, value)
        out = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config if encoder_hidden_states is None else None,
        )
        return attn.to_out[1](attn.to_out[0](out.flatten(2, 3).type_as(query)))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of neighbouring pairs of x [B, tokens, heads, dim]; `cos` and `sin` [1, tokens, 1, dim]."""
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2], sin[..., 1::2]
    return torch.stack((first * cos - second * sin, first * sin + second * cos), -1).flatten(-2).type_as(x)
