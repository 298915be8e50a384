"""From a folder or a file to a policy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from ..config import BUILT_IN, PolicyConfig, PolicyKind
from ..errors import UserError
from .base import Policy, VideoSize
from .encodings import EncodingStore, files_digest
from .fp8 import add_fp8
from .frozen_loras import merge_frozen
from .parts import find_parts, part_places
from .phantom import PhantomPolicy
from .text_file import load_text_encoder, load_tokenizer, text_encoder_files
from .transformer_file import describe_transformer, load_transformer
from .vace import VacePolicy
from .vae_file import load_vae, vae_files

__all__ = [
    "LazyTextEncoder",
    "count_parameters",
    "load_policy",
    "load_policy_in_parts",
    "load_transformer",
    "native_size",
    "policy_of",
    "recognise",
]

TEXT_LENGTH = 512
POLICIES = {"vace": VacePolicy, "phantom": PhantomPolicy}
# By the least width of the transformer: those of 14B and of 1.3B parameters, and smaller ones.
NATIVE_SIZES = {5120: VideoSize(720, 1280, 81), 1536: VideoSize(480, 832, 81), 0: VideoSize(48, 80, 9)}


def policy_of(
    config: PolicyConfig, device: torch.device | str = "cpu", computes_on: torch.device | None = None
) -> Policy:
    """The policy that a run's settings name, with its frozen LoRAs; see `load_policy`.

    `computes_on`: where it will compute, if not on `device`.
    """
    dtype = getattr(torch, config.dtype)
    policy = load_policy(
        config.source, dtype, device, config.text_encoder, config.vae, config.vace_module, config.weights == "stored"
    )
    merge_frozen(policy.transformer, config)
    if config.fp8:
        add_fp8(policy.transformer, computes_on)
    return policy


def load_policy(
    source: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    text_encoder: str | Path | None = None,
    vae: str | Path | None = None,
    vace_module: str | Path | None = None,
    stored: bool = False,
) -> Policy:
    """The policy at `source`, frozen, in evaluation mode: VACE or Phantom, as its weights show.

    source: `tinyworld`, `tinyworld-phantom`, a diffusers folder (transformer/, vae/, text_encoder/, tokenizer/), the
    folder of an original release, or a transformer alone (see `load_transformer`, also for `vace_module` and `stored`).
    `text_encoder`, `vae`: a folder or a file each, if they do not lie in the folder or beside the file. `dtype` is that
    of transformer and text encoder; the VAE stays float32.
    Nothing is downloaded. Raises UserError that lists what was looked for.

    Phantom has the weights of Wan's text-to-video model and no others, so that one is taken for Phantom; it was not
    trained with reference images.
    """
    parts = find_parts(source, text_encoder, vae, vace_module)
    policy = POLICIES[describe_transformer(parts.transformer, parts.vace_module).kind]
    transformer = load_transformer(parts.transformer, dtype, parts.vace_module, stored)
    encoder, tokenizer = load_text_encoder(parts.text_encoder, dtype)
    return policy(
        transformer.to(device),
        load_vae(parts.vae).to(device),
        encoder.to(device),
        tokenizer,
        min(TEXT_LENGTH, tokenizer.model_max_length),
    )


class LazyTextEncoder:
    """A text encoder that is loaded when a text has to be encoded, and stays loaded until it is released.

    `load` returns the model where it is to compute.
    """

    def __init__(self, load: Callable[[], nn.Module]) -> None:
        self._load = load
        self.model: nn.Module | None = None

    @property
    def device(self) -> torch.device:
        return next(self._loaded().parameters()).device

    def __call__(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
        return self._loaded()(ids, attention_mask=attention_mask)

    def release(self) -> None:
        """Free the model's memory; the next text loads it again."""
        self.model = None

    def _loaded(self) -> nn.Module:
        if self.model is None:
            self.model = self._load()
        return self.model


def load_policy_in_parts(
    config: PolicyConfig,
    encodings: Path,
    device: torch.device,
    place_text_encoder: Callable[[nn.Module], nn.Module],
) -> Policy:
    """The policy that a run's settings name, with its frozen LoRAs, on the CPU.

    Its text encoder is loaded at the first text not encoded yet. `device`: where it will compute.

    Encoded texts and references are kept in the folder `encodings`, which runs share: what an earlier run encoded with
    the same files is found there. `place_text_encoder` moves the loaded text encoder to where it computes, and returns
    it. Raises UserError as `load_policy`.
    """
    parts, dtype = (
        find_parts(config.source, config.text_encoder, config.vae, config.vace_module),
        getattr(torch, config.dtype),
    )
    kind = describe_transformer(parts.transformer, parts.vace_module).kind
    tokenizer = load_tokenizer(parts.text_encoder)
    policy = POLICIES[kind](
        load_transformer(parts.transformer, dtype, parts.vace_module, config.weights == "stored"),
        load_vae(parts.vae),
        LazyTextEncoder(lambda: place_text_encoder(load_text_encoder(parts.text_encoder, dtype)[0])),
        tokenizer,
        min(TEXT_LENGTH, tokenizer.model_max_length),
    )
    policy.keep_encodings(
        EncodingStore(encodings, files_digest(text_encoder_files(parts.text_encoder), "text", config.dtype)),
        # Each kind of policy fits pictures in its own way.
        EncodingStore(encodings, files_digest(vae_files(parts.vae), "latents", kind)),
    )
    merge_frozen(policy.transformer, config)
    if config.fp8:
        add_fp8(policy.transformer, device)
    return policy


def recognise(source: str | Path, vace_module: str | Path | None = None) -> PolicyKind:
    """Which policy is at `source` (see `load_policy`), without loading it. Raises UserError when none is."""
    if str(source) in BUILT_IN and not vace_module:
        return BUILT_IN[str(source)]
    return describe_transformer(_transformer(source), vace_module).kind


def count_parameters(source: str | Path, vace_module: str | Path | None = None) -> int:
    """How many parameters the transformer of the policy at `source` has, without loading it. Raises UserError."""
    return describe_transformer(_transformer(source), vace_module).parameters


def native_size(source: str | Path) -> VideoSize:
    """The video size that the policy at `source` was trained at, without loading it.

    81 frames of 1280x720 for models of 14B parameters, 81 of 832x480 for those of 1.3B, TinyWorld's size for smaller
    ones. Raises UserError when there is no policy.
    """
    width = describe_transformer(_transformer(source)).width
    return next(size for least, size in NATIVE_SIZES.items() if width >= least)


def _transformer(source: str | Path) -> Path:
    path = part_places(source)["transformer"]
    if not os.path.exists(path):
        raise UserError(f"no policy at {source}: there is no {path}; give a diffusers folder or a .safetensors file")
    return path
