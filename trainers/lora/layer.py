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

    @property
    def merges(self) -> bool:
        """Whether the product with W + scale B A, gradient included, is no more work than W and the factors apart.

        So it is for a layer of few channels, as TinyWorld's. In half precision the sum would lose the change's bits.
        """
        outputs, inputs = self.base.weight.shape
        small = inputs * outputs <= 2 * self.rank * (inputs + outputs)
        return small and self.base.weight.dtype == torch.float32

    def forward(self, x: Tensor) -> Tensor:
        if self.enabled and self.merges:
            weight = torch.addmm(self.base.weight, self.lora_B, self.lora_A, alpha=self.scale)
            return F.linear(x, weight, self.base.bias)
        out = self.base(x)
        if not self.enabled:
            return out
        change = F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))
        return torch.add(out, change, alpha=self.scale)
