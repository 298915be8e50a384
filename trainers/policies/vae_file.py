"""A VAE: a diffusers folder, or the one file in the original's naming that ComfyUI users have."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..errors import UserError

CHANNELS = 16


def load_vae(path: str | Path) -> nn.Module:
    """A frozen AutoencoderKLWan in float32, of a folder or of a .safetensors file of Wan 2.1's VAE.

    Raises UserError for what is neither.
    """
    path = Path(path)
    model = _from_file(path) if path.is_file() else _from_folder(path)
    return model.eval().requires_grad_(False)


def _from_folder(path: Path) -> nn.Module:
    from diffusers import AutoencoderKLWan

    try:
        return AutoencoderKLWan.from_pretrained(path, torch_dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"cannot load the VAE from {path}: {error}") from error


def _from_file(path: Path) -> nn.Module:
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
        if not {"encoder.conv1.weight", "decoder.conv1.weight", "conv2.weight"} <= weights.keys():
            raise UserError(f"{path} is no Wan VAE in the original's naming; give wan_2.1_vae.safetensors")
        channels = weights["conv2.weight"].shape[0]
        if channels != CHANNELS:
            raise UserError(f"{path} makes latents of {channels} channels: it is not Wan 2.1's VAE, which makes {CHANNELS}; "
                            "give wan_2.1_vae.safetensors")
        width = weights["encoder.conv1.weight"].shape[0]
        with init_empty_weights(include_buffers=False):
            model = AutoencoderKLWan(base_dim=width)
        state = convert_wan_vae_to_diffusers(weights)
        model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read the VAE {path} ({error}); give a complete wan_2.1_vae.safetensors") from error
    return model
