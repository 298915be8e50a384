"""Estimates of the memory that sampling needs beside the weights, so that it can be freed before.

Measured as all tensors alive in one pass of Wan 2.1 1.3B at 240x416 to 720x1280, plus a fifth: per token and channel of
the hidden width 16 numbers for the plain transformer, up to 32 for VACE with its 15 hints. Of the VAE in float32, per
pixel of a frame, what an H100 allocated: 23 to 25 KB to decode a clip, 18 KB to encode VACE's, and 6 KB to encode
single pictures, which is all that Phantom does.
"""

from __future__ import annotations

import math

from .base import VideoSize
from .wan import WanVideoPolicy

NUMBERS_PER_CHANNEL = 20
VAE_BYTES_PER_PIXEL = 25_000
ENCODED_BYTES_PER_PIXEL = {"vace": 18_000, "phantom": 6_000}
VAE_WIDTH = 96


def step_bytes(policy: WanVideoPolicy, size: VideoSize, references: int, branches: int) -> float:
    """Bytes of one denoising step of a clip and its references, in `branches` guidance branches."""
    config = policy.transformer.config
    _, frames, height, width = policy.clip_shape(size)
    tokens = (frames + references) * height * width / math.prod(config.patch_size)
    channels = config.num_attention_heads * config.attention_head_dim
    hints = len(getattr(config, "vace_layers", ()))
    return branches * tokens * channels * policy.dtype.itemsize * (hints + NUMBERS_PER_CHANNEL)


def vae_bytes(policy: WanVideoPolicy, size: VideoSize) -> float:
    """Bytes of encoding or decoding one clip in float32; its length hardly matters."""
    return VAE_BYTES_PER_PIXEL * size.height * size.width * policy.vae.model.config.base_dim / VAE_WIDTH
