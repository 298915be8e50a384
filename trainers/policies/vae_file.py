"""A VAE, from where it lies."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..errors import UserError


def load_vae(path: str | Path) -> nn.Module:
    """A frozen AutoencoderKLWan in float32, of a folder. Raises UserError for what is no such folder."""
    from diffusers import AutoencoderKLWan

    path = Path(path)
    if path.is_file():
        raise UserError(f"{path} is a single file, which cannot be read as a VAE; give a diffusers folder of AutoencoderKLWan")
    try:
        model = AutoencoderKLWan.from_pretrained(path, torch_dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"cannot load the VAE from {path}: {error}") from error
    return model.eval().requires_grad_(False)
