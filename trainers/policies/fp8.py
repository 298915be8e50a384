"""FP8 products of a transformer's linear layers, for passes that need neither a gradient nor an exact density."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
LAYERS = r"(?:vace_)?blocks\.\d+\.(?:attn[12]\.(?:to_q|to_k|to_v|to_out\.0)|ffn\.net\.(?:0\.proj|2))"
UNSCALED = r".*\.ffn\.net\.2"
"""Layers whose input, of GELU, is rounded to FP8 as it is: finding scales for it costs more than the product saves."""


class Fp8Linear(nn.Linear):
    """A frozen linear layer that can also multiply in FP8: one scale per token and one per row of its weight.

    With `unscaled` the tokens have the scale 1, and what is beyond FP8's largest number, 448, is clipped to it. Its own
    weight stays as it is and is used while `fast` is False. Needs a GPU of compute capability 8.9 or more.
    """

    def __init__(self, linear: nn.Linear, unscaled: bool = False) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        quantised, scale = quantise(linear.weight.detach())
        self.register_buffer("fp8_weight", quantised, persistent=False)
        self.register_buffer("fp8_scale", scale.t().contiguous(), persistent=False)
        self.unscaled, self.fast = unscaled, False

    def forward(self, x: Tensor) -> Tensor:
        if not self.fast:
            return F.linear(x, self.weight, self.bias)
        rows = x.reshape(-1, self.in_features)
        if self.unscaled:
            rows, scale = rows.clamp(-LARGEST, LARGEST).to(FP8), rows.new_ones(len(rows), 1, dtype=torch.float32)
        else:
            rows, scale = quantise(rows)
        product = torch._scaled_mm(rows, self.fp8_weight.t(), scale, self.fp8_scale, self.bias, out_dtype=x.dtype)
        return product.reshape(*x.shape[:-1], self.out_features)


def quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [n, k] as FP8 and the scale float32 [n, 1] of each: rows = FP8 * scale, up to its rounding."""
    scale = (rows.abs().amax(dim=1, keepdim=True).float() / LARGEST).clamp(min=1e-12)
    return (rows.float() / scale).to(FP8), scale


def require_fp8(device: torch.device, dtype: torch.dtype) -> None:
    """Raises UserError where FP8 products cannot run."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise UserError("policy.fp8 needs an NVIDIA GPU of the Ada or Hopper generation or newer; set it to false")
    if dtype != torch.bfloat16:
        raise UserError("policy.fp8 needs policy.dtype bfloat16; set that, or policy.fp8 to false")


def add_fp8(transformer: nn.Module, device: torch.device | None = None) -> None:
    """Give the linear layers of the transformer's blocks FP8 products, in place; off until `fast_products`.

    `device`: where they will compute, if not where they are now. Raises UserError where they cannot run.
    """
    weight = transformer.patch_embedding.weight
    require_fp8(device or weight.device, weight.dtype)
    for name, module in list(transformer.named_modules()):
        if type(module) is nn.Linear and re.fullmatch(LAYERS, name):
            transformer.set_submodule(name, Fp8Linear(module, re.fullmatch(UNSCALED, name) is not None))


@contextmanager
def fast_products(transformer: nn.Module) -> Iterator[None]:
    """Within the block, layers that can multiply in FP8 do; nothing happens to a transformer that has none."""
    layers = [module for module in transformer.modules() if isinstance(module, Fp8Linear)]
    for layer in layers:
        layer.fast = True
    try:
        yield
    finally:
        for layer in layers:
            layer.fast = False
