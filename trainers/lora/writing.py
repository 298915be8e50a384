"""From a LoRA to the files of ComfyUI, PEFT and diffusers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..files import atomic_file, atomic_folder
from .adapter import LoRA
from .alphas import ADAPTER_METADATA
from .hashes import tensor_hashes
from .keys import DIFFUSERS, PEFT
from .names import to_original
from .reading import DIFFUSERS_WEIGHTS, PEFT_CONFIG, PEFT_WEIGHTS


def native_tensors(lora: LoRA) -> dict[str, Tensor]:
    """The LoRA by ComfyUI's names: `diffusion_model.<name>.lora_down.weight`, `.lora_up.weight`, `.alpha`.

    Full differences are `diffusion_model.<name>.diff` and `.diff_b`.
    """
    tensors = {}
    for name, (down, up) in lora.modules.items():
        native = f"diffusion_model.{to_original(name)}"
        tensors |= {
            f"{native}.lora_down.weight": _plain(down),
            f"{native}.lora_up.weight": _plain(up),
            f"{native}.alpha": torch.tensor(lora.alpha[name], dtype=torch.float32),
        }
    for name, difference in lora.differences.items():
        native = f"diffusion_model.{to_original(name)}"
        bias = native.endswith(".bias")
        tensors[f"{native.removesuffix('.bias').removesuffix('.weight')}.diff{'_b' if bias else ''}"] = _plain(
            difference
        )
    return tensors


def write_native(lora: LoRA, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write one file with ComfyUI's names (see `native_tensors`), which core and WanVideoWrapper read alike.

    diffusers' pipelines read it too, unless it has VACE's control blocks. The file gets the LoRA's own metadata,
    overridden by `metadata`; if there is any, also the hashes of its tensors that other tools identify it by. An older
    file is replaced only when the new one is complete. Raises UserError when it cannot be written.
    """
    path = Path(path)
    merged = {**lora.metadata, **(metadata or {})}
    with _explained(path):
        if path.is_dir():
            raise UserError(f"cannot write the LoRA {path}: it is a folder; name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as aside:
            tensors = native_tensors(lora)
            save_file(tensors, aside, metadata=merged | tensor_hashes(tensors) if merged else None)


def write_peft(lora: LoRA, folder: str | Path) -> None:
    """Write a folder for `PeftModel.from_pretrained(transformer, folder)` and `pipeline.load_lora_weights(folder)`.

    Every factor is in the file twice, because PEFT and diffusers each read only keys with a prefix of their own. An
    older adapter is replaced only when the new one is complete. Raises UserError when it cannot be written, or `folder`
    holds other files.
    """
    config = {
        "peft_type": "LORA",
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": "gaussian",
        "lora_dropout": 0.0,
        **_config(lora),
    }
    with _new_folder(Path(folder), {PEFT_WEIGHTS, PEFT_CONFIG}) as aside:
        save_file(_tensors(lora, PEFT) | _tensors(lora, DIFFUSERS), aside / PEFT_WEIGHTS, _diffusers_metadata(lora))
        (aside / PEFT_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_diffusers(lora: LoRA, folder: str | Path) -> None:
    """Write a folder for `pipeline.load_lora_weights(folder)`, as diffusers' own `save_lora_weights` does.

    An older one is replaced only when the new one is complete. Raises UserError when it cannot be written, or `folder`
    holds other files.
    """
    with _new_folder(Path(folder), {DIFFUSERS_WEIGHTS}) as aside:
        save_file(_tensors(lora, DIFFUSERS), aside / DIFFUSERS_WEIGHTS, _diffusers_metadata(lora))


def _tensors(lora: LoRA, prefix: str) -> dict[str, Tensor]:
    """`<prefix><diffusers' name>.lora_A.weight` and `.lora_B.weight`."""
    if lora.differences:
        raise UserError(
            f"this LoRA changes {next(iter(lora.differences))} without factors, which PEFT and diffusers cannot hold; "
            "write ComfyUI's format"
        )
    tensors = {}
    for name, (down, up) in lora.modules.items():
        tensors |= {f"{prefix}{name}.lora_A.weight": _plain(down), f"{prefix}{name}.lora_B.weight": _plain(up)}
    return tensors


def _config(lora: LoRA) -> dict[str, Any]:
    """The part of PEFT's LoraConfig that ranks and alphas decide."""
    ranks = {name: lora.rank(name) for name in lora.modules}
    rank, alpha = _most_frequent(ranks), _most_frequent(lora.alpha)
    return {
        "r": rank,
        "lora_alpha": alpha,
        # `^`: else `proj_out` would be a pattern for `vace_blocks.0.proj_out` too.
        "rank_pattern": {f"^{n}": r for n, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{n}": a for n, a in lora.alpha.items() if a != alpha},
        "target_modules": sorted(lora.modules),
        "use_dora": False,
        "use_rslora": False,
    }


def _diffusers_metadata(lora: LoRA) -> dict[str, str]:
    config = {f"{DIFFUSERS}{name}": value for name, value in _config(lora).items()}
    return {"format": "pt", **lora.metadata, ADAPTER_METADATA: json.dumps(config, indent=2, sort_keys=True)}


def _most_frequent(values: Mapping[str, float]) -> float:
    seen = list(values.values())
    return max(dict.fromkeys(seen), key=seen.count) if seen else 1


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


@contextmanager
def _new_folder(folder: Path, names: set[str]) -> Iterator[Path]:
    """Fill the yielded folder; it becomes `folder`, which may hold only files of these names before."""
    with _explained(folder):
        if folder.exists():
            others = sorted({entry.name for entry in folder.iterdir()} - names)
            if others:
                raise UserError(f"cannot write the LoRA {folder}: `{others[0]}` is in that folder; name a new folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as aside:
            yield aside


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write the LoRA {path} ({error}); choose another place. Nothing was replaced"
        ) from error
