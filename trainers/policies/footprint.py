"""About how much memory sampling needs beside the weights, so that room can be made before it starts."""

from __future__ import annotations

from .base import Policy, VideoSize

BRANCHES = {"vace": 2, "phantom": 3}  # of guidance, in one forward
VAE_BYTES_PER_PIXEL = 28_000  # of one frame, at the width of Wan's VAE (96), in float32: ComfyUI's numbers for it


def step_bytes(policy: Policy, shape: tuple[int, int, int, int]) -> float:
    """Of one denoising step of latents `shape` [C, F, h, w] with guidance."""
    config = policy.transformer.config
    patch = config.patch_size
    tokens = shape[1] * shape[2] * shape[3] // (patch[0] * patch[1] * patch[2])
    width = config.num_attention_heads * config.attention_head_dim
    hints = len(getattr(config, "vace_layers", ()))
    return BRANCHES[policy.kind] * tokens * width * policy.dtype.itemsize * (hints + 20)


def vae_bytes(policy: Policy, size: VideoSize) -> float:
    """Of encoding or decoding one clip."""
    return VAE_BYTES_PER_PIXEL * size.height * size.width * policy.vae.model.config.base_dim / 96
