"""A Wan transformer from its weights: one file, shards or a folder, by the original's or diffusers' names."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config import PolicyKind
from ..errors import UserError, shorten
from ..lora.names import to_diffusers, to_original
from ..modelfiles.names import without_wrappers
from ..modelfiles.other_models import refuse_other_models
from ..modelfiles.places import read_json
from ..modelfiles.weights import Weights, open_weights
from ..weights import load_full_state
from .model_config import TransformerConfig, check_agreement, check_config, count_layers
from .stored import StoredLinear

CLASSES: dict[str, PolicyKind] = {"WanVACETransformer3DModel": "vace", "WanTransformer3DModel": "phantom"}
KINDS: dict[str, PolicyKind] = CLASSES | {"VaceWanModel": "vace", "WanModel": "phantom"}
REMEDY = "give the fp16 or bf16 file of a VACE or Phantom transformer"
CONTROL = ("vace_blocks.", "vace_patch_embedding.")
MODULE_REMEDY = "as vace_module give a file such as Wan2_1-VACE_module_1_3B_bf16.safetensors, or none"
HEAD_WIDTH = 128  # of every published Wan transformer
# What a checkpoint of a whole pipeline holds beside the transformer.
OTHER_PARTS = {
    "text_encoders",
    "text_encoder",
    "cond_stage_model",
    "conditioner",
    "vae",
    "first_stage_model",
    "clip_vision",
    "image_encoder",
    "model_ema",
}
_BLOCK, _CONTROL_BLOCK = re.compile(r"blocks\.(\d{1,9})\."), re.compile(r"vace_blocks\.(\d{1,9})\.")
_LINEAR = re.compile(r"(?:vace_)?blocks\.\d+\.(?:(?:self|cross)_attn\.[qkvo]|ffn\.[02]|before_proj|after_proj)\.weight")
_NEEDED = (
    "patch_embedding.weight",
    "head.head.weight",
    "text_embedding.0.weight",
    "time_embedding.0.weight",
    "blocks.0.ffn.0.weight",
)


@dataclass(frozen=True)
class Description:
    """What the headers of a transformer's files show.

    `config`: arguments of its class in diffusers. `keys`: the file's key of every weight, by the original's name.
    `stored`: how many of the parameters are 8-bit weights of the blocks' linear layers.
    """

    kind: PolicyKind
    config: dict[str, Any]
    keys: dict[str, str]
    parameters: int
    stored: int

    @property
    def width(self) -> int:
        """Channels of the hidden states."""
        return self.config["num_attention_heads"] * self.config["attention_head_dim"]


def describe_transformer(path: str | Path, vace_module: str | Path | None = None) -> Description:
    """What is at `path` (see `load_transformer`), from its configuration and headers. Raises UserError."""
    path = Path(path)
    with _opened(path, vace_module) as weights:
        return _description(weights, path)


def load_transformer(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    vace_module: str | Path | None = None,
    stored: bool = False,
) -> nn.Module:
    """A frozen transformer of diffusers, VACE's or Phantom's, in evaluation mode.

    path: a folder with config.json and weights, a file (.safetensors, .pth, .gguf), any shard of several, or their
    index. Names may be the original's or diffusers', with the prefixes of wrappers; of a checkpoint of a whole pipeline
    the transformer is read. Weights may be quantised as `Weights.require_readable` says. What must stay float32 does;
    the rest becomes `dtype`. vace_module: a file with VACE's control blocks alone, for the text-to-video model at
    `path`, as WanVideoWrapper splits VACE. stored: the blocks' linear layers keep 8-bit weights as they are
    (`StoredLinear`).

    Raises UserError for anything else, for missing shards or weights, and where configuration and weights disagree.
    """
    import diffusers
    from accelerate import init_empty_weights

    from .wan import use_exact_time_features

    path = Path(path)
    with _opened(path, vace_module) as weights:
        found = _description(weights, path)
        name = next(name for name, kind in CLASSES.items() if kind == found.kind)
        with init_empty_weights(include_buffers=False):
            model = getattr(diffusers, name)(**found.config)
        wide = set(model._keep_in_fp32_modules)
        state = {}
        for original, key in found.keys.items():
            renamed = to_diffusers(original)
            layer = renamed.removesuffix(".weight")
            if stored and _may_stay_stored(original, weights, key):
                weight, scale = weights.read_stored(key)
                model.set_submodule(layer, StoredLinear(model.get_submodule(layer), weight, scale))
                state |= {renamed: weight} | ({} if scale is None else {f"{layer}.scale": scale})
            else:
                state[renamed] = weights.read(key, torch.float32 if wide & set(renamed.split(".")) else dtype)
    load_full_state(model, state, path)
    use_exact_time_features(model)
    return model.eval().requires_grad_(False)


@contextmanager
def _opened(path: Path, vace_module: str | Path | None) -> Iterator[Weights]:
    if os.path.isdir(path):
        _check_class(path)
    if vace_module:
        _check_module(Path(vace_module), path)
    with open_weights(path, "the transformer", REMEDY, Path(vace_module) if vace_module else None) as weights:
        yield weights


def _check_module(module: Path, path: Path) -> None:
    """Raises UserError unless `module` holds VACE's control blocks and nothing else, and `path` has none."""
    with open_weights(module, "VACE's control blocks", MODULE_REMEDY) as weights:
        names = original_names(weights.keys, module)
    if not names or not all(name.startswith(CONTROL) for name in names):
        raise UserError(f"{module} is no file of VACE's control blocks alone; {MODULE_REMEDY}")
    with open_weights(path, "the transformer", REMEDY) as weights:
        if any(name.startswith(CONTROL) for name in original_names(weights.keys, path)):
            raise UserError(f"{path} has VACE's control blocks itself; give it without vace_module {module}")


def _check_class(folder: Path) -> None:
    name = read_json(folder / "config.json").get("_class_name")
    if not isinstance(name, str) or name not in KINDS:
        raise UserError(f"{folder} holds a `{name}`, which is not a policy; give a {' or '.join(CLASSES)}")


def _description(weights: Weights, path: Path) -> Description:
    keys = original_names(weights.keys, path)
    shapes = {name: weights.shape(key) for name, key in keys.items()}
    refuse_other_models(shapes, path)
    weights.require_readable(keys.values(), path, REMEDY)
    config = infer_config(shapes, _stated_config(weights.metadata, shapes, path), path)
    stored = (name for name, key in keys.items() if _may_stay_stored(name, weights, key))
    return Description(
        _kind(shapes),
        config,
        keys,
        sum(math.prod(shape) for shape in shapes.values()),
        sum(math.prod(shapes[name]) for name in stored),
    )


def _may_stay_stored(name: str, weights: Weights, key: str) -> bool:
    """Whether it is an 8-bit weight of a linear layer in a block, by the original's name."""
    return bool(_LINEAR.fullmatch(name)) and weights.is_8bit(key)


def _kind(shapes: dict[str, tuple[int, ...]]) -> PolicyKind:
    return "vace" if "vace_patch_embedding.weight" in shapes else "phantom"


def original_names(keys: Iterable[str], path: Path) -> dict[str, str]:
    """The key of each of the transformer's weights by the original's name, without prefixes and other models' keys.

    Raises UserError when two keys stand for the same weight.
    """
    names: dict[str, str] = {}
    for key in keys:
        if key.split(".")[0] in OTHER_PARTS:
            continue
        name = to_original(without_wrappers(key))
        if name in names:
            raise UserError(f"{path} holds {name} twice, as {names[name]} and {key}; give a file of one model")
        names[name] = key
    return names


def infer_config(shapes: dict[str, tuple[int, ...]], stated: TransformerConfig, path: object) -> dict[str, Any]:
    """diffusers' configuration of a VACE or Phantom transformer from the shapes of its weights by original names.

    `stated` gives what shapes do not show: heads (else 128 wide), the layers of the control blocks (else evenly
    spread), `eps`, `rope_max_seq_len`. Raises UserError when weights are missing, or `stated` has other numbers.
    """
    if missing := [name for name in _NEEDED if name not in shapes]:
        raise UserError(f"{path} is not a complete Wan transformer: it lacks {shorten(missing)}; {REMEDY}")
    dim, channels, *patch = shapes["patch_embedding.weight"]
    if len(patch) != 3 or any(len(shapes[name]) != 2 for name in _NEEDED[1:]):
        raise UserError(f"{path} is not a Wan transformer: its weights have other dimensions; {REMEDY}")
    heads = stated.num_attention_heads or dim // (stated.attention_head_dim or HEAD_WIDTH)
    if not heads or dim % heads or dim // heads % 2:
        raise UserError(
            f"{path} has {dim} channels, which {heads} attention heads cannot share evenly; put the model's "
            "config.json beside the file"
        )
    found = {
        "patch_size": patch,
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "in_channels": channels,
        "out_channels": shapes["head.head.weight"][0] // (patch[0] * patch[1] * patch[2]),
        "text_dim": shapes["text_embedding.0.weight"][1],
        "freq_dim": shapes["time_embedding.0.weight"][1],
        "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
        "num_layers": count_layers(shapes, _BLOCK, path),
        "cross_attn_norm": "blocks.0.norm3.weight" in shapes,
    }
    if _kind(shapes) == "vace":
        found |= {
            "vace_layers": _control_layers(shapes, stated, found["num_layers"], path),
            "vace_in_channels": shapes["vace_patch_embedding.weight"][1],
        }
    check_agreement(stated, found | {"dim": dim}, path)
    if KINDS.get(stated.class_name or "", _kind(shapes)) != _kind(shapes):
        raise UserError(f"{path} is configured as {stated.class_name}, and its weights are {_kind(shapes)}'s; {REMEDY}")
    beyond = {"eps": stated.eps, "rope_max_seq_len": stated.rope_max_seq_len}
    return found | {name: value for name, value in beyond.items() if value is not None}


def _control_layers(
    shapes: dict[str, tuple[int, ...]], stated: TransformerConfig, layers: int, path: object
) -> list[int]:
    """After which layers the control blocks act."""
    count = count_layers(shapes, _CONTROL_BLOCK, path)
    if stated.vace_layers is not None:
        if len(stated.vace_layers) != count or stated.vace_layers[-1] >= layers:
            raise UserError(
                f"{path} has {layers} layers and {count} control blocks, and its configuration has vace_layers "
                f"{stated.vace_layers}; use weights and configuration of the same model"
            )
        return stated.vace_layers
    if layers % count:
        raise UserError(
            f"{path} does not show after which of its {layers} layers the {count} control blocks act; "
            "put the model's config.json with its vace_layers beside the file"
        )
    return list(range(0, layers, layers // count))


def _stated_config(metadata: dict[str, str], shapes: dict[str, tuple[int, ...]], path: Path) -> TransformerConfig:
    """A folder's config.json; for a file the values in its header, over a config.json of this model beside it."""
    beside = (path if os.path.isdir(path) else path.parent) / "config.json"
    if os.path.isdir(path):
        return check_config(TransformerConfig, read_json(beside), beside)
    values = read_json(beside) if os.path.isfile(beside) else {}
    if not _is_of_this_model(values, shapes):
        values = {}
    return check_config(TransformerConfig, values | _in_header(metadata, path), path)


def _is_of_this_model(values: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether a config.json that lies beside a file among other models has its kind, width and depth."""
    heads, each = values.get("num_attention_heads"), values.get("attention_head_dim")
    width = values.get("dim") or (heads * each if type(heads) is type(each) is int else None)
    layers = len({match[1] for name in shapes if (match := _BLOCK.match(name))})
    return (
        width == shapes["patch_embedding.weight"][0]
        and values.get("num_layers", layers) == layers
        and KINDS.get(str(values.get("_class_name")), _kind(shapes)) == _kind(shapes)
    )


def _in_header(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(metadata.get("config", "{}")).get("transformer", {}))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} has a broken `config` in its header ({error}); {REMEDY}") from error
