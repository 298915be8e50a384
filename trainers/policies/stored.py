"""Linear layers whose weights stay in the 8 bits of their file, and are converted as they are used."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StoredLinear(nn.Linear):
    """A frozen linear layer that keeps its `weight` [out, in] as a file stores it, float8 or int8.

    It computes, forward and backward, as the layer whose weight is weight * scale in the type of its input, to the last
    bit. `scale`: float32, [] or [out, 1]; None for weights without one. Made on the meta device, to be filled.
    """

    def __init__(self, linear: nn.Linear, weight: Tensor, scale: Tensor | None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)
        self.bias = linear.bias
        self.register_buffer("scale", None if scale is None else torch.empty_like(scale, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self.weight, self.scale, self.bias)


class _Product(torch.autograd.Function):
    """The converted weight is made again for the backward pass: kept, it would be all that was saved."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return F.linear(x, convert(weight, scale, x.dtype), bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient @ convert(*ctx.saved_tensors, gradient.dtype), None, None, None


def convert(weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The weight in `dtype`; a product with a scale is computed in float32 and rounded once."""
    return weight.to(dtype) if scale is None else weight.float().mul_(scale).to(dtype)


def holds_float8(transformer: nn.Module) -> bool:
    """Whether any of the transformer's layers keeps a float8 weight as it is stored."""
    kept = (module.weight.dtype for module in transformer.modules() if isinstance(module, StoredLinear))
    return any(dtype.is_floating_point for dtype in kept)
