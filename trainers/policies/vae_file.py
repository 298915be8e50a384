"""A VAE from its weights: a diffusers folder, or the one file in the original's naming that ComfyUI users have."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..modelfiles.inspection import PARTS, describe
from ..modelfiles.names import by_plain_name
from ..modelfiles.other_models import LATENT_CHANNELS
from ..modelfiles.places import read_json, weight_files
from ..modelfiles.weights import open_weights
from ..weights import load_full_state
from .model_config import VaeConfig, check_config

COLOURS = 3
REMEDY = "give wan_2.1_vae.safetensors"


def load_vae(path: str | Path) -> nn.Module:
    """A frozen AutoencoderKLWan in float32, of a diffusers folder or of a file of Wan 2.1's VAE.

    A file may have the original's names or diffusers'; the latter with the config.json beside it, if there is one.
    Raises UserError for anything else.
    """
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKLWan

    path = Path(path)
    with open_weights(path, "the VAE", REMEDY) as weights:
        keys = _without_prefix(weights.keys, path)
        what = describe({key: weights.shape(key) for key in weights.keys})
        if what and "VAE" not in what and not any(key.startswith(PARTS["VAE"]) for key in weights.keys):
            raise UserError(f"{path} is {what}, not a VAE; {REMEDY}")
        weights.require_readable(keys.values(), path, REMEDY)
        original = "encoder.conv1.weight" in keys
        if original:
            _check_original({name: weights.shape(key) for name, key in keys.items()}, path)
        config = (
            {} if original else _stated_config(path) or _config_of({n: weights.shape(k) for n, k in keys.items()}, path)
        )
        state = {name: weights.read(key, torch.float32) for name, key in keys.items()}
    if original:
        config["base_dim"] = state["encoder.conv1.weight"].shape[0]
        state = _by_diffusers_names(state, path)
    with init_empty_weights(include_buffers=False):
        model = AutoencoderKLWan(**config)
    load_full_state(model, state, path)
    return model.eval().requires_grad_(False)


def _without_prefix(keys: Iterable[str], path: Path) -> dict[str, str]:
    """The key of each of the VAE's weights by its name without prefixes, wrappers and the other parts of a pipeline."""
    names = by_plain_name(keys, path)
    first = ("encoder.conv1.weight", "encoder.conv_in.weight")
    prefix = next((name.removesuffix(end) for name in names for end in first if name.endswith(end)), "")
    return {name.removeprefix(prefix): key for name, key in names.items() if name.startswith(prefix)}


def vae_files(path: str | Path) -> list[Path]:
    """All files that latents of the VAE at `path` depend on: weights and configuration."""
    path = Path(path)
    config = (path if os.path.isdir(path) else path.parent) / "config.json"
    return [*weight_files(path, REMEDY), *([config] if os.path.isfile(config) else [])]


def _stated_config(path: Path) -> dict[str, Any]:
    """What the config.json in the folder, or beside the file, states; Wan 2.1's own values hold for the rest.

    Empty beside a file without one.
    """
    place = (path if os.path.isdir(path) else path.parent) / "config.json"
    if not os.path.isdir(path) and not os.path.exists(place):
        return {}
    config = check_config(VaeConfig, read_json(place), place)
    _check_channels(config.z_dim, place)
    if config.is_residual or config.patch_size is not None or (config.in_channels, config.out_channels) != (3, 3):
        raise UserError(f"{place} is not of Wan 2.1's VAE (is_residual, patch_size or in_channels); {REMEDY}")
    return config.model_dump(exclude_unset=True, exclude_none=True, exclude={"class_name"})


def _config_of(shapes: dict[str, tuple[int, ...]], path: Path) -> dict[str, Any]:
    """The width that the weights show, by diffusers' names. Raises UserError for another VAE."""
    inputs, latents = (shapes.get(name, ()) for name in ("encoder.conv_in.weight", "post_quant_conv.weight"))
    if len(inputs) != 5 or len(latents) != 5:
        raise UserError(f"{path} is no Wan VAE; {REMEDY}")
    _check_channels(latents[0], path)
    return {"base_dim": inputs[0]}


def _check_original(shapes: dict[str, tuple[int, ...]], path: Path) -> None:
    """`shapes`: by the original's names. Raises UserError for another VAE."""
    needed = ("encoder.conv1.weight", "decoder.conv1.weight", "decoder.head.2.weight", "conv2.weight")
    if any(len(shapes.get(name, ())) != 5 for name in needed):
        raise UserError(f"{path} is no Wan VAE in the original's naming; {REMEDY}")
    _check_channels(shapes["conv2.weight"][0], path)
    inputs, outputs = shapes["encoder.conv1.weight"][1], shapes["decoder.head.2.weight"][0]
    if (inputs, outputs) != (COLOURS, COLOURS):
        raise UserError(
            f"{path} reads {inputs} and writes {outputs} channels of a picture, not red, green and blue; {REMEDY}"
        )


def _by_diffusers_names(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    try:
        return convert_wan_vae_to_diffusers(state)
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"{path} has other weights than a Wan VAE ({error}); {REMEDY}") from error


def _check_channels(channels: int, source: object) -> None:
    if channels != LATENT_CHANNELS:
        raise UserError(
            f"{source} is of a VAE with {channels} latent channels: it is not Wan 2.1's VAE, which has "
            f"{LATENT_CHANNELS}; {REMEDY}"
        )
