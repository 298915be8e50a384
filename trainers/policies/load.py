"""From a folder or a file to a policy."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from ..errors import UserError
from ..lora.names import to_diffusers
from .base import Policy
from .wan import exact_time

TEXT_LENGTH = 512
PARTS = ("transformer", "vae", "text_encoder", "tokenizer")
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")


def load_policy(source: str | Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Policy:
    """The policy at `source`, frozen, in evaluation mode.

    source: `tinyworld`, a diffusers folder (transformer/, vae/, text_encoder/, tokenizer/), or a .safetensors file of a
    transformer in the original's naming with vae/, text_encoder/ and tokenizer/ beside it. `dtype` is that of
    transformer and text encoder; the VAE stays float32. Nothing is downloaded. Raises UserError that lists what was
    looked for.
    """
    if str(source) == "tinyworld":
        from ..tinyworld.models import WEIGHTS

        source = WEIGHTS / "vace"
    source = Path(source)
    root = source.parent if source.is_file() else source
    wanted = {name: root / name for name in PARTS}
    if source.is_file():
        wanted["transformer"] = source
    missing = [f"{name}: {path}" for name, path in wanted.items() if not path.exists()]
    if missing:
        raise UserError(
            f"no policy at {source}: not found are\n  "
            + "\n  ".join(missing)
            + "\ngive a diffusers folder with transformer/, vae/, text_encoder/ and tokenizer/, or `tinyworld`"
        )
    transformer = load_transformer(wanted["transformer"], dtype).to(device)

    from diffusers import AutoencoderKLWan
    from transformers import AutoTokenizer, UMT5EncoderModel

    from .vace import VacePolicy

    vae = _part(
        "VAE",
        wanted["vae"],
        lambda p: AutoencoderKLWan.from_pretrained(p, torch_dtype=torch.float32, local_files_only=True),
    )
    text = _part(
        "text encoder", wanted["text_encoder"], lambda p: UMT5EncoderModel.from_pretrained(p, local_files_only=True)
    )
    tokenizer = _part(
        "tokenizer", wanted["tokenizer"], lambda p: AutoTokenizer.from_pretrained(p, local_files_only=True)
    )
    return VacePolicy(
        transformer,
        _frozen(vae).to(device),
        _frozen(text).to(device, dtype),
        tokenizer,
        min(TEXT_LENGTH, tokenizer.model_max_length),
    )


def load_transformer(path: str | Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A frozen WanVACETransformer3DModel from a diffusers folder, or from one original-naming .safetensors file."""
    path = Path(path)
    model = _from_original(path, dtype) if path.is_file() else _from_folder(path, dtype)
    exact_time(model)
    return _frozen(model)


def _from_folder(path: Path, dtype: torch.dtype) -> nn.Module:
    config = path / "config.json"
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {config} ({error}); it should be the configuration of a diffusers transformer"
        ) from error
    _refuse_other_kinds(kind, path)
    from diffusers import WanVACETransformer3DModel

    return _part(
        "transformer",
        path,
        lambda p: WanVACETransformer3DModel.from_pretrained(p, torch_dtype=dtype, local_files_only=True),
    )


def infer_config(shapes: dict[str, tuple[int, ...]], hints: dict) -> dict:
    """diffusers' configuration of a VACE transformer from the shapes of its original-named tensors.

    `hints`: what shapes cannot tell, if known: `num_heads` (else heads are 128 wide), `vace_layers` (else spread
    evenly), `eps`. Raises UserError when the control blocks cannot be spread evenly over the layers.
    """

    def count(kind: str) -> int:
        return 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith(kind))

    dim, channels, *patch = shapes["patch_embedding.weight"]
    layers, controls = count("blocks."), count("vace_blocks.")
    heads = hints.get("num_heads") or dim // 128
    if "vace_layers" not in hints and layers % controls:
        raise UserError(
            f"shapes do not tell after which of the {layers} layers the {controls} control blocks act; "
            "put the model's config.json with its vace_layers beside the file"
        )
    return {
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
        "vace_layers": hints.get("vace_layers") or list(range(0, layers, layers // controls)),
        "vace_in_channels": shapes["vace_patch_embedding.weight"][1],
    }


def _from_original(path: Path, dtype: torch.dtype) -> nn.Module:
    from accelerate import init_empty_weights
    from diffusers import WanVACETransformer3DModel
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            names = {_without_prefix(key): key for key in list(file.keys())}
            shapes = {name: tuple(file.get_slice(key).get_shape()) for name, key in names.items()}
            if "patch_embedding.weight" not in shapes or "head.head.weight" not in shapes:
                raise UserError(
                    f"{path} is not a Wan transformer in the original's naming: "
                    "it has no patch_embedding.weight or no head.head.weight"
                )
            _refuse_other_kinds(
                "WanVACETransformer3DModel" if "vace_patch_embedding.weight" in shapes else "WanTransformer3DModel",
                path,
            )
            with init_empty_weights(include_buffers=False):
                model = WanVACETransformer3DModel(**infer_config(shapes, _hints(path, file.metadata() or {}, shapes)))
            wide = tuple(model._keep_in_fp32_modules)
            state = {}
            for name, key in names.items():
                renamed = to_diffusers(name)
                keep = any(part in wide for part in renamed.split("."))
                state[renamed] = file.get_tensor(key).to(torch.float32 if keep else dtype)
            model.load_state_dict(state, assign=True)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"cannot read the transformer {path} ({error}); give a complete .safetensors file of a Wan VACE transformer"
        ) from error
    return model


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


def _refuse_other_kinds(kind: str | None, path: Path) -> None:
    if kind == "WanTransformer3DModel":
        raise UserError(f"{path} is a plain Wan transformer (as Phantom's): not supported yet; give a VACE transformer")
    if kind != "WanVACETransformer3DModel":
        raise UserError(f"{path} holds a `{kind}`, which is no policy known here; give a WanVACETransformer3DModel")


def _part(name: str, path: Path, load) -> nn.Module:
    try:
        return load(path)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"cannot load the {name} from {path}: {error}") from error


def _frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)
