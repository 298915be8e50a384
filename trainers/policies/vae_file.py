"""A VAE: a diffusers folder, or the one file in the original's naming that ComfyUI users have."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..errors import UserError
from ..weights import load_full_state, require_complete

CHANNELS = 16
COLOURS = 3
REMEDY = "give wan_2.1_vae.safetensors"


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
        loaded = AutoencoderKLWan.from_pretrained(
            path, torch_dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"cannot load the VAE from {path}: {error}") from error
    return require_complete(loaded, path)


def _from_file(path: Path) -> nn.Module:
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = {key.removeprefix("model."): tensor for key, tensor in load_file(path).items()}
        _refuse_other_models({name: tuple(tensor.shape) for name, tensor in weights.items()}, path)
        with init_empty_weights(include_buffers=False):
            model = AutoencoderKLWan(base_dim=weights["encoder.conv1.weight"].shape[0])
        state = convert_wan_vae_to_diffusers(weights)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read the VAE {path} ({error}); {REMEDY}, complete") from error
    load_full_state(model, {name: tensor.float() for name, tensor in state.items()}, path)
    return model


def _refuse_other_models(shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    if not {"encoder.conv1.weight", "decoder.conv1.weight", "decoder.head.2.weight", "conv2.weight"} <= shapes.keys():
        raise UserError(f"{path} is no Wan VAE in the original's naming; {REMEDY}")
    channels = shapes["conv2.weight"][0]
    if channels != CHANNELS:
        raise UserError(
            f"{path} makes latents of {channels} channels: it is not Wan 2.1's VAE, which makes {CHANNELS}; {REMEDY}"
        )
    read, drawn = shapes["encoder.conv1.weight"][1], shapes["decoder.head.2.weight"][0]
    if (read, drawn) != (COLOURS, COLOURS):
        raise UserError(
            f"{path} reads {read} and draws {drawn} channels of a picture, not red, green and blue; {REMEDY}"
        )
