"""A linear layer with a LoRA beside it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoraLinear(nn.Module):
    """base(x) + scale B A x. The factors are float32; they act in the type of x.

    `base`: the frozen layer, of `in_features` and `out_features`. A half-precision base takes the products of the
    factors in half precision too: float32 products of the few ranks cost as much as the layer itself on a GPU. Their
    gradients are collected in float32.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base = base
        device = base.weight.device
        self.lora_A = nn.Parameter(torch.zeros(rank, base.in_features, dtype=torch.float32, device=device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, dtype=torch.float32, device=device))
        self.scale = scale
        self.enabled = True

    @property
    def rank(self) -> int:
        return self.lora_A.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        out = self.base(x)
        if not self.enabled:
            return out
        change = F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
        return torch.add(out, change, alpha=self.scale)
