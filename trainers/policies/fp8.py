"""FP8 products of a transformer's linear layers, for passes that need neither a gradient nor an exact density."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .stored import StoredLinear

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
        return _product(x, self.fp8_weight, self.fp8_scale, self.bias, self.unscaled)


class StoredFp8Linear(StoredLinear):
    """A layer of FP8 weights as a file stores them that can also multiply in FP8, by these weights themselves."""

    def __init__(self, layer: StoredLinear, unscaled: bool = False) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("scale", layer.scale)
        rows = torch.ones(1, self.out_features, device=layer.weight.device)
        self.register_buffer("fp8_scale", rows if layer.scale is None else rows * layer.scale.t(), persistent=False)
        self.unscaled, self.fast = unscaled, False

    def forward(self, x: Tensor) -> Tensor:
        if not self.fast:
            return super().forward(x)
        return _product(x, self.weight, self.fp8_scale, self.bias, self.unscaled)


def _product(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, unscaled: bool) -> Tensor:
    """x [..., in] and FP8 `weight` [out, in] with `scale` [1, out] -> [..., out] in the type of x."""
    rows = x.reshape(-1, x.shape[-1])
    if unscaled:
        rows, own = rows.clamp(-LARGEST, LARGEST).to(FP8), rows.new_ones(len(rows), 1, dtype=torch.float32)
    else:
        rows, own = quantise(rows)
    product = torch._scaled_mm(rows, weight.t(), own, scale, bias, out_dtype=x.dtype)
    return product.reshape(*x.shape[:-1], len(weight))


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


def block_layers(transformer: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The linear layers of the transformer's blocks by their names."""
    return [(name, module) for name, module in transformer.named_modules() if re.fullmatch(LAYERS, name)]


def add_fp8(transformer: nn.Module, device: torch.device | None = None) -> None:
    """Give the linear layers of the transformer's blocks FP8 products, in place; off until `fast_products`.

    FP8 weights that stay as they are stored are multiplied themselves; others get a copy in FP8, and int8 ones stay as
    they are. `device`: where they will compute, if not where they are now. Raises UserError where they cannot run.
    """
    weight = transformer.patch_embedding.weight
    require_fp8(device or weight.device, weight.dtype)
    for name, module in block_layers(transformer):
        unscaled = re.fullmatch(UNSCALED, name) is not None
        if type(module) is nn.Linear:
            transformer.set_submodule(name, Fp8Linear(module, unscaled))
        elif isinstance(module, StoredLinear) and module.weight.dtype == FP8:
            transformer.set_submodule(name, StoredFp8Linear(module, unscaled))


@contextmanager
def fast_products(transformer: nn.Module) -> Iterator[None]:
    """Within the block, layers that can multiply in FP8 do; nothing happens to a transformer that has none."""
    layers = [module for module in transformer.modules() if isinstance(module, (Fp8Linear, StoredFp8Linear))]
    for layer in layers:
        layer.fast = True
    try:
        yield
    finally:
        for layer in layers:
            layer.fast = False
