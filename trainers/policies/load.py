"""From a folder or a file to a policy."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..config import BUILT_IN, TINYWORLD_WEIGHTS, PolicyConfig, PolicyKind
from ..errors import UserError
from ..lora.names import to_diffusers
from ..weights import load_full_state, require_complete
from .base import Policy
from .text_file import load_text_encoder
from .vae_file import load_vae
from .wan import use_exact_time_features

T = TypeVar("T")

TEXT_LENGTH = 512
_CLASSES: dict[str, PolicyKind] = {"WanVACETransformer3DModel": "vace", "WanTransformer3DModel": "phantom"}
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")


@dataclass(frozen=True)
class Parts:
    """Where the parts of a policy lie; the tokenizer is that of the text encoder."""

    transformer: Path
    text_encoder: Path
    vae: Path


def find_parts(source: str | Path, text_encoder: str | Path | None = None, vae: str | Path | None = None) -> Parts:
    """The parts of the policy at `source` (see `load_policy`). Raises UserError that lists what is not there."""
    wanted = _places(source)
    if text_encoder:
        wanted["text_encoder"] = Path(text_encoder)
    if vae:
        wanted["vae"] = Path(vae)
    texts = wanted["text_encoder"]
    tokenizers = [texts, texts.parent / "tokenizer", texts / "tokenizer"]
    looked_for = dict(wanted)
    if not any((place / "tokenizer_config.json").is_file() for place in tokenizers) and not texts.is_file():
        looked_for["tokenizer"] = texts.parent / "tokenizer"
    missing = [f"{name}: {path}" for name, path in looked_for.items() if name == "tokenizer" or not path.exists()]
    if missing:
        raise UserError(
            f"no policy at {source}: not found are\n  "
            + "\n  ".join(missing)
            + "\ngive a diffusers folder with transformer/, vae/, text_encoder/ and tokenizer/, name text encoder and VAE "
            f"apart (policy.text_encoder, policy.vae), or give {' or '.join(f'`{name}`' for name in BUILT_IN)}"
        )
    return Parts(**wanted)


def _places(source: str | Path) -> dict[str, Path]:
    """Where each part should be when only `source` is told."""
    if str(source) in BUILT_IN:
        # One VAE and one text encoder serve both miniatures.
        shared = {name: TINYWORLD_WEIGHTS / "vace" / name for name in ("text_encoder", "vae")}
        return {"transformer": TINYWORLD_WEIGHTS / BUILT_IN[str(source)] / "transformer", **shared}
    source = Path(source)
    root = source.parent if source.is_file() else source
    places = {name: root / name for name in ("transformer", "text_encoder", "vae")}
    return places | {"transformer": source} if source.is_file() else places


def policy_of(config: PolicyConfig, device: torch.device | str = "cpu") -> Policy:
    """The policy that a run's settings name; see `load_policy`."""
    return load_policy(config.source, getattr(torch, config.dtype), device, config.text_encoder, config.vae)


def load_policy(
    source: str | Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    text_encoder: str | Path | None = None,
    vae: str | Path | None = None,
) -> Policy:
    """The policy at `source`, frozen, in evaluation mode: VACE or Phantom, as its files say.

    source: `tinyworld`, `tinyworld-phantom`, a diffusers folder (transformer/, vae/, text_encoder/, tokenizer/), or a
    .safetensors file of a transformer in the original's naming. `text_encoder`, `vae`: a folder or a .safetensors file
    each, if they do not lie in the folder or beside the file. `dtype` is that of transformer and text encoder; the VAE
    stays float32. Nothing is downloaded. Raises UserError that lists what was looked for.

    Phantom has the tensors of Wan's text-to-video model and no others, so that one passes for Phantom; it does not know
    what to do with references.
    """
    from .phantom import PhantomPolicy
    from .vace import VacePolicy

    parts = find_parts(source, text_encoder, vae)
    policy = {"vace": VacePolicy, "phantom": PhantomPolicy}[_kind_at(parts.transformer)]
    transformer = load_transformer(parts.transformer, dtype)
    encoder, tokenizer = load_text_encoder(parts.text_encoder, dtype)
    return policy(
        transformer.to(device),
        load_vae(parts.vae).to(device),
        encoder.to(device),
        tokenizer,
        min(TEXT_LENGTH, tokenizer.model_max_length),
    )


def recognise(source: str | Path) -> PolicyKind:
    """Which policy is at `source` (see `load_policy`), without loading it. Raises UserError when none is."""
    return BUILT_IN[str(source)] if str(source) in BUILT_IN else _kind_at(_places(source)["transformer"])


def count_parameters(source: str | Path) -> int:
    """How many numbers the transformer of the policy at `source` has, from the heads of its .safetensors files.

    Raises UserError when one cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    place = _places(source)["transformer"]
    count = 0
    try:
        for path in [place] if place.is_file() else sorted(place.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                count += sum(math.prod(file.get_slice(key).get_shape()) for key in list(file.keys()))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the weights of {place} ({error}); give a model downloaded to its end") from error
    return count


def _kind_at(path: Path) -> PolicyKind:
    if path.is_file():
        return _read_original(path, lambda file, names, shapes: _kind_of_shapes(path, shapes))
    config = path / "config.json"
    try:
        known = json.loads(config.read_text(encoding="utf-8"))
        name = known.get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"cannot read {config} ({error}); it should be the configuration of a diffusers transformer"
        ) from error
    if name not in _CLASSES:
        raise UserError(f"{path} holds a `{name}`, which is no policy known here; give a {' or '.join(_CLASSES)}")
    if known.get("image_dim") or known.get("in_channels", 16) != known.get("out_channels", 16):
        raise _other_inputs(path)
    return _CLASSES[name]


def _other_inputs(path: Path) -> UserError:
    return UserError(
        f"{path} is a Wan transformer with inputs that neither VACE nor Phantom have (as image-to-video's); "
        "give a VACE or Phantom transformer"
    )


def load_transformer(path: str | Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A frozen transformer of diffusers, VACE's or Phantom's, from its folder or one original-naming .safetensors file."""
    path = Path(path)
    model = _from_original(path, dtype) if path.is_file() else _from_folder(path, dtype)
    use_exact_time_features(model)
    return model.eval().requires_grad_(False)


def _from_folder(path: Path, dtype: torch.dtype) -> nn.Module:
    kind = _class_of(_kind_at(path))
    try:
        loaded = kind.from_pretrained(
            path, torch_dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"cannot load the transformer from {path}: {error}") from error
    return require_complete(loaded, path)


def _class_of(kind: PolicyKind) -> type:
    import diffusers

    return getattr(diffusers, next(name for name, known in _CLASSES.items() if known == kind))


def infer_config(shapes: dict[str, tuple[int, ...]], hints: dict) -> dict:
    """diffusers' configuration of a VACE or Phantom transformer from the shapes of its original-named tensors.

    `hints`: what shapes cannot tell, if known: `num_heads` (else heads are 128 wide), `vace_layers` (else spread
    evenly), `eps`. Raises UserError when the control blocks cannot be spread evenly over the layers.
    """
    dim, channels, *patch = shapes["patch_embedding.weight"]
    layers = _count(shapes, "blocks.")
    heads = hints.get("num_heads") or dim // 128
    config = {
        "patch_size": patch,
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "in_channels": channels,
        "out_channels": shapes["head.head.weight"][0] // (patch[0] * patch[1] * patch[2]),
        "text_dim": shapes["text_embedding.0.weight"][1],
        "freq_dim": shapes["time_embedding.0.weight"][1],
        "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
        "num_layers": layers,
        "cross_attn_norm": "blocks.0.norm3.weight" in shapes,
        "eps": hints.get("eps", 1e-6),
    }
    if "vace_patch_embedding.weight" not in shapes:
        return config
    controls = _count(shapes, "vace_blocks.")
    if "vace_layers" not in hints and layers % controls:
        raise UserError(
            f"shapes do not tell after which of the {layers} layers the {controls} control blocks act; "
            "put the model's config.json with its vace_layers beside the file"
        )
    return config | {
        "vace_layers": hints.get("vace_layers") or list(range(0, layers, layers // controls)),
        "vace_in_channels": shapes["vace_patch_embedding.weight"][1],
    }


def _count(shapes: dict[str, tuple[int, ...]], kind: str) -> int:
    return 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith(kind))


def _from_original(path: Path, dtype: torch.dtype) -> nn.Module:
    from accelerate import init_empty_weights

    def build(file: Any, names: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> nn.Module:
        kind = _class_of(_kind_of_shapes(path, shapes))
        with init_empty_weights(include_buffers=False):
            model = kind(**infer_config(shapes, _hints(path, file.metadata() or {}, shapes)))
        wide = tuple(model._keep_in_fp32_modules)
        state = {}
        for name, key in names.items():
            renamed = to_diffusers(name)
            keep = any(part in wide for part in renamed.split("."))
            state[renamed] = file.get_tensor(key).to(torch.float32 if keep else dtype)
        load_full_state(model, state, path)
        return model

    return _read_original(path, build)


def _read_original(path: Path, use: Callable[[Any, dict[str, str], dict[str, tuple[int, ...]]], T]) -> T:
    """`use` of the open file, the file's key of every original name, and the shapes by original name."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = {_without_prefix(key): key for key in list(file.keys())}
            return use(file, names, {name: tuple(file.get_slice(key).get_shape()) for name, key in names.items()})
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"cannot read the transformer {path} ({error}); give a complete .safetensors file of a Wan VACE or Phantom "
            "transformer"
        ) from error


def _kind_of_shapes(path: Path, shapes: dict[str, tuple[int, ...]]) -> PolicyKind:
    if "patch_embedding.weight" not in shapes or "head.head.weight" not in shapes:
        raise UserError(
            f"{path} is not a Wan transformer in the original's naming: "
            "it has no patch_embedding.weight or no head.head.weight"
        )
    if "vace_patch_embedding.weight" in shapes:
        return "vace"
    channels, patch = shapes["patch_embedding.weight"][1], shapes["patch_embedding.weight"][2:]
    drawn = shapes["head.head.weight"][0] // (patch[0] * patch[1] * patch[2])
    if channels != drawn or "blocks.0.cross_attn.k_img.weight" in shapes:
        raise _other_inputs(path)
    return "phantom"


def _hints(path: Path, metadata: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> dict:
    """The file's own metadata, over a config.json of the original class beside it (if that is of this model)."""
    hints = {}
    beside = path.parent / "config.json"
    if beside.is_file():
        known = json.loads(beside.read_text(encoding="utf-8"))
        if known.get("dim") == shapes["patch_embedding.weight"][0]:
            hints = known
    return hints | json.loads(metadata.get("config", "{}")).get("transformer", {})


def _without_prefix(key: str) -> str:
    for prefix in _PREFIXES:
        key = key.removeprefix(prefix)
    return key
