"""From latents to tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel, as one product; its tokens lie one after the other in memory.

    A convolution leaves the channels outermost, and everything that reads the tokens then strides through memory. It
    shares the weights of `convolution`.
    """

    def __init__(self, convolution: nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias

    def forward(self, latents: Tensor) -> Tensor:
        """[B, C, F, H, W] -> [B, dim, f, h, w], in memory as [B, f, h, w, dim]."""
        for axis, length in zip((2, 4, 6), self.weight.shape[2:], strict=True):
            latents = latents.unflatten(axis, (-1, length))
        pixels = latents.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)
        return F.linear(pixels, self.weight.flatten(1), self.bias).permute(0, 4, 1, 2, 3)


def use_patch_products(transformer: nn.Module) -> None:
    """Replace the patch embeddings of a Wan transformer of diffusers by `PatchEmbedding`, in place."""
    for name in ("patch_embedding", "vace_patch_embedding"):
        convolution = getattr(transformer, name, None)
        if isinstance(convolution, nn.Conv3d):
            setattr(transformer, name, PatchEmbedding(convolution))
