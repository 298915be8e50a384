"""One line about any file of weights: kind, size, types, form, and what it was trained with. Reads headers only."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from .identify import WIDTHS, Shapes, identify, name_adapter
from .names import without_wrappers
from .other_models import name_relative
from .places import WHOLE_REWARD
from .weights import Weights, open_weights

REMEDY = "give a file of weights (.safetensors, .gguf, .pth), or a folder with one"
REWARD_FILES = (*WHOLE_REWARD, "non_lora_state_dict.safetensors", "non_lora_state_dict.pth")
SHOWN = 60  # characters of an entry of a header
# Parts of a checkpoint of a whole pipeline, by the first part of its keys.
PARTS = {
    "model": "model.diffusion_model.",
    "text encoder": ("text_encoders.", "text_encoder.", "cond_stage_model.", "conditioner."),
    "VAE": ("vae.", "first_stage_model."),
}
# Entries of a header that name the trainer, the base model and the steps, in order of preference.
TRAINERS = ("software", "modelspec.implementation", "trainer")
BASES = ("ss_sd_model_name", "ss_base_model_version", "modelspec.architecture", "base_model", "baseModel", "policy")
STEPS = ("ss_steps", "steps", "iteration")


def inspect_file(path: str | Path) -> str:
    """What is at `path`, a file or a folder with weights, in one line.

    As `VACE 1.3B of Wan 2.1, 2.1 billion parameters, BF16, original names`. Raises UserError when it cannot be read.
    """
    place, before = _inside(Path(path))
    with open_weights(place, "the file", REMEDY) as weights:
        shapes = {key: weights.shape(key) for key in weights.keys}
        facts = [*_kind(shapes), _types(weights, shapes), _form(weights), *_training(weights.metadata)]
    return before + ", ".join(fact for fact in facts if fact)


def _inside(path: Path) -> tuple[Path, str]:
    """The part of a folder of several parts that shows what it is, and words for that."""
    if os.path.isdir(path / "transformer"):
        return path / "transformer", "diffusers folder with "
    checkpoints = sorted(path.glob("checkpoint-*"), key=lambda c: (len(c.name), c.name))
    if os.path.isfile(path / "model_config.json") and checkpoints:
        return _first(checkpoints[-1], REWARD_FILES) or checkpoints[
            -1
        ], f"folder of a reward, its {checkpoints[-1].name} is "
    if os.path.isfile(path / "model_config.json") and (found := _first(path, WHOLE_REWARD)):
        return found, "folder of a reward, it is "
    if os.path.isfile(path / "adapter_config.json") and (found := _first(path, REWARD_FILES[2:])):
        return found, "checkpoint of a reward, it is "
    if os.path.isfile(path / "config.yaml") and os.path.isdir(path / "exports"):
        exports = sorted((path / "exports").glob("*.safetensors"))
        if not exports:
            raise UserError(f"{path} is the folder of a run that has written no LoRA yet")
        return exports[-1], f"folder of a run, its newest LoRA {exports[-1].name} is "
    return path, ""


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if os.path.isfile(folder / name)), None)


def _kind(shapes: Shapes) -> list[str]:
    """The kind and its size."""
    names = {without_wrappers(key): shape for key, shape in shapes.items()}
    if name_adapter(names):
        ranks = sorted({s[0] for n, s in names.items() if re.search(r"lora_(A|down)\b", n) and len(s) > 1})
        modules = sum(bool(re.search(r"lora_(B|up)\b", name)) for name in names)
        rank = f"rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "") if ranks else ""
        return [_plain(identify(shapes)), rank, f"{modules} layers" if modules else ""]
    parts = [part for part, start in PARTS.items() if any(key.startswith(start) for key in shapes)]
    whole = f"checkpoint of a whole pipeline ({', '.join(parts)}) with " if len(parts) > 1 else ""
    count = sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith("spiece_model"))
    size = f"{count / 1e9:.1f} billion" if count >= 1e8 else f"{count / 1e6:.1f} million"
    return [whole + _plain(describe(shapes) or "weights of an unknown model"), f"{size} parameters"]


def describe(shapes: Shapes) -> str | None:
    """The kind of a file with these tensors, with its article; None for an unknown one."""
    wan = name_wan({without_wrappers(key): shape for key, shape in shapes.items()})
    return wan or identify(shapes)


def name_wan(names: Shapes) -> str | None:
    """Which Wan transformer has these weights, by names without wrappers; None for other files."""
    embedding, head = names.get("patch_embedding.weight"), names.get("head.head.weight") or names.get("proj_out.weight")
    control = any(name.startswith("vace_blocks.") for name in names)
    if embedding is None or head is None or len(embedding) != 5:
        return "VACE's control blocks without their text-to-video model" if control and embedding is None else None
    relative = name_relative(names, embedding[1], head[0] // max(1, math.prod(embedding[2:])))
    size = f" {WIDTHS[embedding[0]]}" if embedding[0] in WIDTHS else ""
    if relative:
        return f"VACE on {relative}" if control else relative
    return f"VACE{size} of Wan 2.1" if control else f"Phantom{size} or the text-to-video model of Wan"


def _plain(what: str | None) -> str:
    """Without the article."""
    return re.sub(r"^an? ", "", what or "")


def _types(weights: Weights, shapes: Shapes) -> str:
    """The types that hold most numbers, first the most frequent; those of less than a hundredth are left out."""
    counts: Counter[str] = Counter()
    for key, shape in shapes.items():
        if not key.endswith("spiece_model"):
            counts[weights.dtype(key)] += math.prod(shape)
    found = [name for name, count in counts.most_common() if count * 100 >= counts.total()]
    scaled = " with scales" if any(key.endswith(("scale_weight", "weight_scale")) for key in weights.all_keys) else ""
    return " and ".join(found) + scaled


def _form(weights: Weights) -> str:
    joined = " ".join(weights.keys)
    for naming, parts in {
        "kohya's names": ("lora_unet_", "lycoris_"),
        "PEFT's names": ("base_model.model.",),
        "llama.cpp's names": ("enc.blk.", "blk.0."),
        "diffusers' names": ("attn1.", "attn2.", "mid_block.", "condition_embedder."),
        "transformers' names": ("SelfAttention.", "self_attn.q_proj."),
        "original names": ("self_attn.", "cross_attn.", "middle.0.", "blocks.0.attn.", "vace_blocks."),
    }.items():
        if any(part in joined for part in parts):
            return naming
    return ""


def _training(metadata: Mapping[str, str]) -> list[str]:
    """What the header says of the training: entries that anyone may have written, so they are shortened."""
    values = {name: _text(metadata[name]) for name in (*TRAINERS, *BASES, *STEPS) if metadata.get(name)}
    if "run" in metadata and "iteration" in metadata:
        iteration = f"iteration {values['iteration']}" if values.get("iteration", "").isdecimal() else ""
        return [f"trained with Identity-GRPO (run {_text(metadata['run'])})", _frozen(metadata), iteration]
    trainer = next((values[name] for name in TRAINERS if name in values), None)
    if trainer is None and any(name.startswith("ss_") for name in metadata):
        trainer = "sd-scripts or musubi-tuner"
    base = next((values[name] for name in BASES if name in values), None)
    counted = [name for name in STEPS if values.get(name, "").isdecimal() and len(values[name]) < 10]
    steps = next((f"{'iteration' if n == 'iteration' else 'step'} {values[n]}" for n in counted), None)
    return [f"trained with {trainer}" if trainer else "", f"on {base}" if base else "", steps or ""]


def _frozen(metadata: Mapping[str, str]) -> str:
    """On which policy, and under which LoRAs."""
    base = f"on {_text(metadata['policy'])}" if metadata.get("policy") else ""
    try:
        names = [str(one["file"]) for one in json.loads(metadata.get("frozen_loras", "[]"))]
    except (ValueError, TypeError, KeyError, RecursionError):
        names = []
    return " ".join(filter(None, (base, f"under {_text(', '.join(names))}" if names else "")))


def _text(value: str) -> str:
    """An entry of a header in one line; of ai-toolkit's JSON its name and version."""
    found: Any = value
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(value)
    if isinstance(found, dict):
        value = " ".join(str(found[name]) for name in ("name", "version") if name in found)
    value = re.sub(r"[^\x20-\x7e]+", " ", value).strip()
    return value if len(value) <= SHOWN else f"{value[:SHOWN]}..."
