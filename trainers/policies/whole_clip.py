"""Wan's VAE on a CPU: a whole clip at a time, channels last.

diffusers decodes frame by frame with a cache of features, which bounds the memory of long videos. For a small clip
the copies and the small convolutions cost more than the arithmetic. Here every layer sees all frames at once, which
gives the same numbers up to float rounding. The weights are those of diffusers' modules.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_UPSAMPLE_TAPS = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))
"""[4, 3]: which taps of a kernel of 3 after a doubling fall on the same pixel before it (see `_double`)."""


class WholeClips:
    """Encodes and decodes small clips by an AutoencoderKLWan of Wan 2.1 in float32 on a CPU, without gradient.

    Made for one call of several batches: it keeps the weights in the order that the convolutions read.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._weights: dict[nn.Module, Tensor] = {}

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, z, f, h, w] in the network's units -> pixels [B, 3, F, H, W] in [-1, 1]."""
        decoder = self._model.decoder
        x = _pointwise(self._model.post_quant_conv, latents.permute(0, 2, 3, 4, 1).contiguous())
        x = self._middle(decoder.mid_block, self._causal(decoder.conv_in, _after_zeros(x)))
        for block in decoder.up_blocks:
            for layer in (*block.resnets, *(block.upsamplers or ())):
                x = self._layer(layer, x)
        x = self._causal(decoder.conv_out, _activated(decoder.norm_out, x))
        return x.clamp_(-1, 1).permute(0, 4, 1, 2, 3)

    def encode(self, videos: Tensor) -> Tensor:
        """Pixels [B, 3, F, H, W] in [-1, 1] -> the most likely latents [B, z, f, h, w] in the network's units."""
        encoder = self._model.encoder
        x = self._causal(encoder.conv_in, _after_zeros(videos.permute(0, 2, 3, 4, 1)))
        for layer in encoder.down_blocks:
            x = self._layer(layer, x)
        x = self._middle(encoder.mid_block, x)
        x = self._causal(encoder.conv_out, _activated(encoder.norm_out, x))
        mode, _ = _pointwise(self._model.quant_conv, x).chunk(2, -1)
        return mode.permute(0, 4, 1, 2, 3)

    def _layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        return self._resample(layer, x) if hasattr(layer, "resample") else self._residual(layer, x)

    def _middle(self, block: nn.Module, x: Tensor) -> Tensor:
        x = self._residual(block.resnets[0], x)
        for attention, residual in zip(block.attentions, block.resnets[1:], strict=True):
            x = self._residual(residual, self._attention(attention, x))
        return x

    def _residual(self, block: nn.Module, x: Tensor) -> Tensor:
        shortcut = x if isinstance(block.conv_shortcut, nn.Identity) else _pointwise(block.conv_shortcut, x)
        x = self._causal(block.conv1, _activated(block.norm1, x))
        return self._causal(block.conv2, _activated(block.norm2, x)).add_(shortcut)

    def _attention(self, block: nn.Module, x: Tensor) -> Tensor:
        batch, frames, height, width, channels = x.shape
        normed = _normed(block.norm, x).view(batch * frames, height * width, channels)
        q, k, v = _pointwise(block.to_qkv, normed).chunk(3, -1)
        return _pointwise(block.proj, F.scaled_dot_product_attention(q, k, v)).view_as(x).add_(x)

    def _resample(self, block: nn.Module, x: Tensor) -> Tensor:
        """Halve or double the sides, and the number of frames but the first, which stands alone in time."""
        first, rest = x[:, :1], x[:, 1:]
        if block.mode == "upsample3d" and rest.shape[1]:
            pairs = self._causal(block.time_conv, _after_zeros(rest)).unflatten(-1, (2, -1))
            x = torch.cat([first, pairs.movedim(-2, 2).flatten(1, 2)], 1)
        batch = len(x)
        x = x.flatten(0, 1).permute(0, 3, 1, 2)
        x = self._double(block.resample[1], x) if block.mode.startswith("up") else self._halve(block.resample[1], x)
        x = x.permute(0, 2, 3, 1).unflatten(0, (batch, -1))
        if block.mode == "downsample3d" and rest.shape[1]:
            x = torch.cat([x[:, :1], self._causal(block.time_conv, x)], 1)
        return x

    def _causal(self, conv: nn.Module, x: Tensor) -> Tensor:
        """A convolution of [B, T, H, W, C] whose zero frames in front, if it needs any, are there already."""
        weight = self._weight(conv, torch.channels_last_3d)
        padding = (0, *(size // 2 for size in weight.shape[3:]))
        x = x.permute(0, 4, 1, 2, 3)
        return _convolve(x, weight, conv.bias, padding, conv.stride).permute(0, 2, 3, 4, 1)

    def _halve(self, conv: nn.Module, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self._weight(conv, torch.channels_last), conv.bias, stride=2)

    def _double(self, conv: nn.Module, x: Tensor) -> Tensor:
        """Nearest-neighbour doubling and a 3x3 convolution, as one transposed convolution.

        Of the 9 taps in a doubled picture 5 read a pixel that another reads too: their weights are added.
        """
        if conv not in self._weights:
            taps = torch.tensor(_UPSAMPLE_TAPS)
            kernel = torch.einsum("ay,bx,ocyx->coab", taps, taps, conv.weight)
            self._weights[conv] = kernel.contiguous(memory_format=torch.channels_last)
        return F.conv_transpose2d(x, self._weights[conv], conv.bias, stride=2, padding=1)

    def _weight(self, conv: nn.Module, layout: torch.memory_format) -> Tensor:
        if conv not in self._weights:
            self._weights[conv] = conv.weight.contiguous(memory_format=layout)
        return self._weights[conv]


def _convolve(x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    # torch takes its own, ten times slower code for a batch of one clip.
    if torch.backends.mkldnn.is_available():
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), 1)
    return F.conv3d(x, weight, bias, stride, padding)


def _pointwise(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution of one pixel: a product over the last axis."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


def _after_zeros(x: Tensor) -> Tensor:
    """Two zero frames before the first: what a causal convolution over three frames sees there."""
    return F.pad(x, (0, 0, 0, 0, 0, 0, 2, 0))


def _normed(norm: nn.Module, x: Tensor, out: Tensor | None = None) -> Tensor:
    """`ChannelNorm` over the last axis."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_(min=1e-12)
    return torch.div(x, length, out=out).mul_(norm.gamma.flatten() * norm.scale)


def _activated(norm: nn.Module, x: Tensor) -> Tensor:
    """Norm and SiLU of [B, T, H, W, C], after two zero frames."""
    batch, frames, *rest = x.shape
    padded = x.new_empty(batch, frames + 2, *rest)
    padded[:, :2] = 0
    F.silu(_normed(norm, x, padded[:, 2:]), inplace=True)
    return padded
