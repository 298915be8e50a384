"""Where the parts of a policy lie on the disk; without torch, so that a wrong path is refused at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..config import BUILT_IN, TINYWORLD_WEIGHTS
from ..errors import UserError
from ..modelfiles.places import reward_folder

# Beside the transformer in the original releases of Wan 2.1.
ORIGINAL_FILES = {"text_encoder": "models_t5_umt5-xxl-enc-bf16.pth", "vae": "Wan2.1_VAE.pth"}


@dataclass(frozen=True)
class Parts:
    """Where the parts of a policy lie; the tokenizer is that of the text encoder."""

    transformer: Path
    text_encoder: Path
    vae: Path
    vace_module: Path | None = None


def find_parts(
    source: str | Path,
    text_encoder: str | Path | None = None,
    vae: str | Path | None = None,
    vace_module: str | Path | None = None,
) -> Parts:
    """The parts of the policy at `source` (see `load_policy`). Raises UserError that lists what was not found."""
    if not os.path.exists(source) and str(source) not in BUILT_IN:
        raise UserError(
            f"no policy at {source}: there is no such file or folder; give a diffusers folder, a .safetensors file, or "
            + " or ".join(f"`{name}`" for name in BUILT_IN)
        )
    if str(source) not in BUILT_IN and (reward := reward_folder(Path(source))):
        whole = reward == Path(os.path.abspath(source))
        what, it = ("a reward", "it") if whole else ("a part of a reward", f"its folder {reward}")
        raise UserError(f"{source} is {what}, not a policy; give {it} as --reward, in ComfyUI to Load Reward")
    wanted = part_places(source)
    if text_encoder:
        wanted["text_encoder"] = Path(text_encoder)
    if vae:
        wanted["vae"] = Path(vae)
    if vace_module:
        wanted["vace_module"] = Path(vace_module)
    for name, path in wanted.items():
        if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
            raise UserError(f"{name} {path} is neither a file nor a folder; give a file of weights or a folder")
    missing = [f"{name}: {path}" for name, path in wanted.items() if not os.path.exists(path)]
    texts = wanted["text_encoder"]
    tokenizers = [texts, texts.parent / "tokenizer", texts / "tokenizer"]
    if not os.path.isfile(texts) and not any(os.path.isfile(p / "tokenizer_config.json") for p in tokenizers):
        missing.append(f"tokenizer: {texts.parent / 'tokenizer'}")
    if missing:
        found = _inspected(Path(source))
        if os.path.exists(wanted["transformer"]):
            from .transformer_file import describe_transformer

            describe_transformer(wanted["transformer"], vace_module)  # raises for what is no transformer, naming it
        raise UserError(
            f"no policy at {source}{f' ({found})' if found else ''}: not found are\n  "
            + "\n  ".join(missing)
            + "\ngive a diffusers folder with transformer/, vae/, text_encoder/ and tokenizer/, name text encoder and "
            f"VAE separately (policy.text_encoder, policy.vae), or give {' or '.join(f'`{name}`' for name in BUILT_IN)}"
        )
    return Parts(**wanted)


def _inspected(source: Path) -> str:
    """What is in a folder; empty where that cannot be said. Raises UserError for a file without weights."""
    from ..modelfiles.inspection import inspect_file

    try:
        return inspect_file(source)
    except UserError:
        if os.path.isfile(source):
            raise
        return ""


def part_places(source: str | Path) -> dict[str, Path]:
    """Where each part should be when only `source` is given."""
    if str(source) in BUILT_IN:
        # One VAE and one text encoder serve both built-in models.
        shared = {name: TINYWORLD_WEIGHTS / "vace" / name for name in ("text_encoder", "vae")}
        return {"transformer": TINYWORLD_WEIGHTS / BUILT_IN[str(source)] / "transformer", **shared}
    source = Path(source)
    root = source if os.path.isdir(source) else source.parent
    places = {name: root / name for name in ("transformer", "text_encoder", "vae")}
    places |= {part: root / name for part, name in ORIGINAL_FILES.items() if os.path.isfile(root / name)}
    # The original releases keep config.json and shards at the top of their folder.
    if not os.path.isdir(source) or _is_transformer_folder(source):
        places["transformer"] = source
    return places


def _is_transformer_folder(folder: Path) -> bool:
    return os.path.isfile(folder / "config.json") and not os.path.isdir(folder / "transformer")
