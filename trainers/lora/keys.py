"""Which factor of which module a key of a LoRA file holds, in the spellings of the common trainers."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .names import find_module

PEFT, DIFFUSERS = "base_model.model.", "transformer."
MOST = 50_000  # keys; a LoRA on every layer of the 14B model has 2,000
_PREFIX = re.compile(
    r"(?:base_model\.model|base_model|model\.diffusion_model|diffusion_model|transformer|pipe|dit|vace)\."
    r"|lora_unet__?|lora_transformer_|lycoris_"
)
# torch.compile, DDP and FSDP put these in front of the wrapped module: the whole model or each block.
_WRAPPER = re.compile(r"(?:^|(?<=[._]))(?:_orig_mod|_fsdp_wrapped_module|module)[._]")
_SUFFIX = re.compile(
    r"(?P<module>.+?)\.(?:(?:(?P<down>lora_A|lora_down)|(?P<up>lora_B|lora_up))(?:\.default)?\.weight|(?P<alpha>alpha))"
)
_UNSUPPORTED = (
    (re.compile(r"\.lokr_"), "a LoKr"),
    (re.compile(r"\.hada_"), "a LoHa"),
    (re.compile(r"\.(?:dora_scale|lora_magnitude_vector)\b"), "a DoRA"),
    (re.compile(r"\.oft_"), "an OFT adapter"),
    (re.compile(r"\.(?:diff|diff_b|set_weight)$"), "a LoRA with full differences of weights or biases"),
    (re.compile(r"\.lora_B\.(?:default\.)?bias$"), "a LoRA with biases"),
    (re.compile(r"\.lora_mid\b"), "a LoCon"),
)
_IMAGE_TO_VIDEO = re.compile(r"(?:img_emb|condition_embedder[._]image_embedder)[._]")


@dataclass
class ModuleKeys:
    """The keys of one module, and its name as the file spells it, without prefixes."""

    spelling: str
    down: str = ""
    up: str = ""
    alpha: str = ""


def sort_keys(keys: AbstractSet[str], path: Path) -> dict[str, ModuleKeys]:
    """The keys of every module of a LoRA file, by diffusers' module name, sorted.

    Raises UserError, naming `path` and the key, for whatever is not a complete plain LoRA for Wan.
    """
    if len(keys) > MOST:
        raise UserError(f"{path} has {len(keys)} tensors, more than any LoRA for Wan; choose another file")
    for pattern, kind in _UNSUPPORTED:
        found = next((key for key in sorted(keys) if pattern.search(key)), None)
        if found:
            raise UserError(
                f"{path} is {kind} (it holds `{_short(found)}`), which is not supported; "
                "choose or train a plain LoRA of A and B factors"
            )
    modules: dict[str, ModuleKeys] = {}
    for key in sorted(keys):
        # Our PEFT folders hold every factor under diffusers' key too.
        if key.startswith(DIFFUSERS) and PEFT + key.removeprefix(DIFFUSERS) in keys:
            continue
        match = _SUFFIX.fullmatch(key)
        if not match:
            raise UserError(
                f"{path} is no LoRA for Wan that can be read here: it holds `{_short(key)}`; "
                "give a file with lora_A/lora_B or lora_down/lora_up"
            )
        spelling = _without_prefixes(match["module"])
        name = find_module(spelling)
        if _IMAGE_TO_VIDEO.match(spelling):
            raise UserError(
                f"{path} is a LoRA for Wan's image-to-video model: it changes `{_short(match['module'])}`; "
                "choose one for VACE, Phantom or Wan's text-to-video model"
            )
        if name is None:
            raise UserError(
                f"{path} is no LoRA for Wan: it changes `{_short(match['module'])}`, which a Wan model does not have; "
                "choose another file"
            )
        module = modules.setdefault(name, ModuleKeys(spelling))
        part = next(part for part in ("down", "up", "alpha") if match[part])
        if getattr(module, part):
            raise UserError(f"{path} changes {name} twice, under two spellings; choose another file")
        setattr(module, part, key)
    incomplete = min((name for name, module in modules.items() if not (module.down and module.up)), default=None)
    if incomplete or not modules:
        raise UserError(
            f"{path} is incomplete: "
            + (f"{incomplete} lacks one of its two factors" if incomplete else "it holds no factors")
            + "; copy or download it again"
        )
    return dict(sorted(modules.items()))


def _without_prefixes(name: str) -> str:
    """The module's name without what trainers and wrappers put in front of it or between its parts."""
    name = _WRAPPER.sub("", name)
    while prefix := _PREFIX.match(name):
        name = name[prefix.end() :]
    return name


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:120]}…"
