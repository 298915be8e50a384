"""LoRA files: PEFT, diffusers and ComfyUI-native, read into one form and written as PEFT or ComfyUI-native.

Inside, modules carry diffusers' names (`blocks.0.attn1.to_q`) and every module its own rank and alpha.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from .names import to_diffusers, to_original

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_PREFIXES = ("base_model.model.", "transformer.", "model.diffusion_model.", "diffusion_model.")
_OF_WAN = re.compile(
    r"(?:vace_)?blocks\.\d+\.(?:attn[12]|ffn|proj_in|proj_out)(?:\..+)?|condition_embedder\..+|(?:vace_)?patch_embedding|proj_out"
)
_KEY = re.compile(r"(?P<module>.+?)\.(?:(?P<down>lora_A|lora_down)|(?P<up>lora_B|lora_up))(?:\.default)?\.weight")


@dataclass(frozen=True)
class LoRA:
    """Low-rank changes of linear layers: W + strength alpha / r B A.

    `modules`: diffusers' module name -> (A [r, in], B [out, r]); `alpha`: the same names; `metadata`: of the file.
    Raises UserError when a pair does not fit together, or holds a number that is not finite or of no floating-point type.
    """

    modules: dict[str, tuple[Tensor, Tensor]]
    alpha: dict[str, float]
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, (down, up) in self.modules.items():
            if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or not down.shape[0]:
                raise UserError(
                    f"the LoRA's factors of {name} do not fit: A {tuple(down.shape)}, B {tuple(up.shape)}; "
                    "only linear layers with A [r, in] and B [out, r] are supported"
                )
            if not (down.is_floating_point() and up.is_floating_point()):
                raise UserError(
                    f"the LoRA holds numbers of type {up.dtype if down.is_floating_point() else down.dtype} in {name}; "
                    "only floating-point ones are supported"
                )
            # As float32: torch does not know whether numbers of eight bits are finite.
            finite = all(torch.isfinite(factor.float()).all() for factor in (down, up))
            if not (finite and math.isfinite(self.alpha[name])):
                raise UserError(
                    f"the LoRA holds numbers that are not finite in {name}: it is broken, use an earlier one"
                )

    def rank(self, name: str) -> int:
        return self.modules[name][0].shape[0]

    def scale(self, name: str) -> float:
        """alpha / r."""
        return self.alpha[name] / self.rank(name)

    def merged_delta(self, name: str, strength: float = 1.0) -> Tensor:
        """What to add to the weight of module `name`: strength alpha / r B A, float64 [out, in]."""
        down, up = self.modules[name]
        return strength * self.scale(name) * (up.double() @ down.double())


def read_lora(path: str | Path) -> LoRA:
    """Read a PEFT folder, or a .safetensors file with PEFT's, diffusers' or ComfyUI's native names.

    PEFT keeps alpha in adapter_config.json, which must lie beside the weights. Elsewhere a module without `.alpha` has
    scale 1 (alpha = r), as in ComfyUI and diffusers. Raises UserError with the reason for a foreign or broken file.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in (WEIGHTS, "pytorch_lora_weights.safetensors") if (path / name).is_file()]
        if not found:
            raise UserError(
                f"no LoRA in the folder {path}: neither {WEIGHTS} nor pytorch_lora_weights.safetensors is there"
            )
        path = found[0]
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in list(file.keys())}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot read the LoRA {path} ({error}); give a complete .safetensors file or a PEFT folder"
        ) from error
    pairs, alphas = _sorted(tensors, path)
    is_peft = any(key.startswith("base_model.model.") for key in tensors)
    if is_peft:
        alphas = _peft_alphas(path.parent / CONFIG, {name: a.shape[0] for name, (a, _) in pairs.items()})
    return LoRA(pairs, {name: alphas.get(name, float(a.shape[0])) for name, (a, _) in pairs.items()}, metadata)


def native_tensors(lora: LoRA) -> dict[str, Tensor]:
    """The LoRA by ComfyUI's names: `diffusion_model.<name>.lora_down.weight`, `.lora_up.weight`, `.alpha`."""
    tensors = {}
    for name, (down, up) in lora.modules.items():
        native = f"diffusion_model.{to_original(name)}"
        tensors |= {
            f"{native}.lora_down.weight": _plain(down),
            f"{native}.lora_up.weight": _plain(up),
            f"{native}.alpha": torch.tensor(lora.alpha[name], dtype=torch.float32),
        }
    return tensors


def write_native(lora: LoRA, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write ComfyUI's native form, which core and WanVideoWrapper read alike.

    Keys: `diffusion_model.<name>.lora_down.weight`, `.lora_up.weight`, `.alpha`. The file keeps the LoRA's own metadata
    under the given one, and replaces an older file at once or not at all. Raises UserError when it cannot be written, or
    `path` is a folder.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"cannot write the LoRA {path}: that is a folder; name a file")
    tensors = native_tensors(lora)
    merged = {**lora.metadata, **(metadata or {})}
    _write_aside(path, lambda aside: save_file(tensors, aside, metadata=merged or None))


def write_peft(lora: LoRA, folder: str | Path) -> None:
    """Write a PEFT adapter folder: weights with diffusers' names, rank and alpha of every module.

    An older one is replaced when the new one is complete. Raises UserError when it cannot be written, or `folder` holds
    more than an adapter.
    """
    folder = Path(folder)
    more = sorted({p.name for p in folder.iterdir()} - {WEIGHTS, CONFIG}) if folder.is_dir() else []
    if more:
        raise UserError(f"cannot write the LoRA {folder}: `{more[0]}` is in that folder too; name one of its own")
    ranks = {name: lora.rank(name) for name in lora.modules}
    rank, alpha = _usual(ranks), _usual(lora.alpha)
    config = {
        "peft_type": "LORA",
        "auto_mapping": None,
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": "gaussian",
        "lora_dropout": 0.0,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {n: r for n, r in ranks.items() if r != rank},
        "alpha_pattern": {n: a for n, a in lora.alpha.items() if a != alpha},
        "target_modules": sorted(lora.modules),
        "use_dora": False,
        "use_rslora": False,
    }
    tensors = {}
    for name, (down, up) in lora.modules.items():
        tensors |= {
            f"base_model.model.{name}.lora_A.weight": _plain(down),
            f"base_model.model.{name}.lora_B.weight": _plain(up),
        }

    def write(aside: Path) -> None:
        aside.mkdir()
        save_file(tensors, aside / WEIGHTS, metadata={"format": "pt", **lora.metadata})
        (aside / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    _write_aside(folder, write)


def _sorted(tensors: dict[str, Tensor], path: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, float]]:
    """The file's factors and alphas by diffusers' module name."""
    down: dict[str, Tensor] = {}
    up: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for key, value in tensors.items():
        match = _KEY.fullmatch(key)
        if match and value.ndim:
            found, name, content = down if match["down"] else up, _module(match["module"]), value
        elif key.endswith(".alpha") and value.numel() == 1 and not value.is_complex():
            found, name, content = alphas, _module(key.removesuffix(".alpha")), float(value)
        else:
            raise UserError(
                f"{path} is no LoRA for Wan that is understood here: it holds `{key}` of shape {tuple(value.shape)}; "
                "give PEFT, diffusers or ComfyUI-native names with lora_A/lora_B or lora_down/lora_up"
            )
        if name in found:
            raise UserError(f"{path} is no single LoRA: it changes {name} twice, by two spellings; choose another file")
        found[name] = content
    lonely = sorted(set(down) ^ set(up)) + sorted(set(alphas) - set(down))
    if lonely or not down:
        raise UserError(
            f"{path} is incomplete: "
            + (f"{lonely[0]} lacks one of its two factors" if lonely else "it holds no factors")
        )
    foreign = next((name for name in sorted(down) if not _OF_WAN.fullmatch(name)), None)
    if foreign:
        raise UserError(
            f"{path} is no LoRA for Wan: it changes `{foreign}`, which a Wan model does not have; choose another file"
        )
    return {name: (down[name], up[name]) for name in sorted(down)}, alphas


def _module(key: str) -> str:
    for prefix in _PREFIXES:
        if key.startswith(prefix):
            key = key[len(prefix) :]
            break
    return to_diffusers(key)


def _peft_alphas(path: Path, ranks: dict[str, int]) -> dict[str, float]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        usual = float(config["lora_alpha"])
        special = dict(config.get("alpha_pattern") or {})
        patterns = [(re.compile(rf"(.*\.)?({pattern})"), float(value)) for pattern, value in special.items()]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError, re.error) as error:
        raise UserError(
            f"cannot read {path} ({error}): a PEFT LoRA has its alpha there; put the file beside the weights"
        ) from error
    if config.get("use_dora"):
        raise UserError(f"{path} describes a DoRA, which is not supported; train or convert it as a plain LoRA")

    def alpha(name: str) -> float:
        value = next((value for pattern, value in patterns if pattern.fullmatch(name)), usual)
        # rsLoRA divides by the root of the rank: the alpha that gives the same factor.
        return value * math.sqrt(ranks[name]) if config.get("use_rslora") else value

    return {name: alpha(name) for name in ranks}


def _usual(values: Mapping[str, float]) -> float:
    """The most frequent value."""
    seen = list(values.values())
    return max(dict.fromkeys(seen), key=seen.count) if seen else 1


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _write_aside(target: Path, write: Callable[[Path], None]) -> None:
    """`write` makes a file or folder beside `target`; it is synced and renamed, or removed when anything fails."""
    aside = target.with_name(f".partial-{target.name}-{os.getpid()}")
    old = target.with_name(f".old-{target.name}-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        for path in [*aside.rglob("*"), aside] if aside.is_dir() else [aside]:
            _sync(path)
        if target.is_dir():
            target.rename(old)
        os.replace(aside, target)
        _sync(target.parent)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            if old.exists() and not target.exists():
                old.rename(target)
        raise UserError(
            f"cannot write the LoRA {target} ({error}); make room or choose another place, nothing was replaced"
        ) from error
    finally:
        with suppress(OSError):
            _remove(aside)
            if target.exists():
                _remove(old)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
