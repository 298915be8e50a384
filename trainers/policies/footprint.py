"""About how much memory sampling needs beside the weights, so that room can be made before it starts.

Counted over all tensors alive in one pass of Wan 2.1 1.3B at 240x416 to 720x1280, with a fifth or more to spare: per
token and channel of the hidden width 16 numbers for the plain transformer and up to 32 for VACE with its 15 hints; per
pixel of a frame 15 KB to encode a clip and 20 KB to decode it.
"""

from __future__ import annotations

from .base import Policy, VideoSize

NUMBERS_PER_CHANNEL = 20
VAE_BYTES_PER_PIXEL = 28_000
VAE_WIDTH = 96


def step_bytes(policy: Policy, shape: tuple[int, int, int, int], branches: int) -> float:
    """Of one denoising step of latents `shape` [C, F, h, w] in `branches` guidance branches."""
    config = policy.transformer.config
    patch = config.patch_size
    tokens = shape[1] * shape[2] * shape[3] // (patch[0] * patch[1] * patch[2])
    width = config.num_attention_heads * config.attention_head_dim
    hints = len(getattr(config, "vace_layers", ()))
    return branches * tokens * width * policy.dtype.itemsize * (hints + NUMBERS_PER_CHANNEL)


def vae_bytes(policy: Policy, size: VideoSize) -> float:
    """Of encoding or decoding one clip in float32; a long clip needs hardly more than a short one."""
    return VAE_BYTES_PER_PIXEL * size.height * size.width * policy.vae.model.config.base_dim / VAE_WIDTH
