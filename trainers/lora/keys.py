"""Which factor of which module a key of a LoRA file holds, in the spellings of the common trainers."""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UserError
from ..modelfiles.identify import ADAPTERS
from .names import find_module

PEFT, DIFFUSERS = "base_model.model.", "transformer."
MOST = 50_000  # keys; a LoRA on every layer of the 14B model has 2,000
_PREFIX = re.compile(
    r"(?:base_model\.model|base_model|model\.diffusion_model|diffusion_model|model|transformer|unet|net|pipe|dit|vace)\."
    r"|lora_unet__?|lora_transformer_|lycoris_"
)
# torch.compile, DDP, FSDP and activation checkpointing put these in front of the wrapped module: the whole model or
# each block.
_WRAPPER = re.compile(r"(?:^|(?<=[._]))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)[._]")
_SUFFIX = re.compile(
    r"(?P<module>.+?)\.(?:(?:(?P<down>lora_A|lora_down)|(?P<up>lora_B|lora_up))(?:\.\w+)?\.weight|(?P<alpha>alpha)"
    r"|(?P<weight>diff)|(?P<bias>diff_b))"
)
_UNSUPPORTED = (
    *((re.compile(pattern), kind) for pattern, kind in ADAPTERS.items() if kind != "a LoRA"),
    (re.compile(r"^(?:lora_te\d?_|text_encoders?[._])"), "a LoRA that changes the text encoder too"),
    (re.compile(r"\.set_weight$"), "a LoRA that replaces weights"),
    (re.compile(r"\.[wb]_norm$"), "a LoRA with norms of LyCORIS"),
    (re.compile(r"\.lora_B\.(?:\w+\.)?bias$"), "a LoRA with biases"),
    (re.compile(r"\.lora_mid\b"), "a LoCon"),
)
# What is left out, as ComfyUI does: the image inputs of Wan's image-to-video model, and changes of modulations under a
# name that only WanVideoWrapper has.
_LEFT_OUT = re.compile(
    r"(?:^|[._])(?:img_emb|condition_embedder[._]image_embedder|cross_attn[._](?:k_img|v_img|norm_k_img)"
    r"|attn2[._](?:add_k_proj|add_v_proj|norm_added_k))[._]|\.diff_m$"
)


@dataclass
class ModuleKeys:
    """The keys of one module, and its name as the file spells it, without prefixes."""

    spelling: str
    down: str = ""
    up: str = ""
    alpha: str = ""


@dataclass(frozen=True)
class LoRAKeys:
    """The keys of a LoRA file.

    `modules`: by diffusers' module name, sorted; `differences`: by diffusers' parameter name; `twins`: keys that must
    hold the same tensor; `left_out`: keys without effect here.
    """

    modules: dict[str, ModuleKeys]
    differences: dict[str, str]
    twins: list[tuple[str, str]]
    left_out: list[str]


def sort_keys(keys: AbstractSet[str], path: Path) -> LoRAKeys:
    """The keys of a LoRA file by what they hold.

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
    found = LoRAKeys(modules, {}, [], [key for key in sorted(keys) if _LEFT_OUT.search(key)])
    for key in sorted(keys - set(found.left_out)):
        # Our PEFT folders hold every factor under diffusers' key too.
        if key.startswith(DIFFUSERS) and (twin := PEFT + key.removeprefix(DIFFUSERS)) in keys:
            found.twins.append((key, twin))
            continue
        match = _SUFFIX.fullmatch(key)
        if not match:
            raise UserError(
                f"{path} is no LoRA for Wan that can be read here: it holds `{_short(key)}`; "
                "give a file with lora_A/lora_B or lora_down/lora_up"
            )
        spelling = _without_prefixes(match["module"])
        name = find_module(spelling)
        if name is None:
            raise UserError(
                f"{path} is no LoRA for Wan: it changes `{_short(match['module'])}`, which a Wan model does not have; "
                "choose another file"
            )
        if match["weight"] or match["bias"]:
            # A modulation is a parameter itself.
            parameter = (
                name if name.endswith("scale_shift_table") else f"{name}.{'weight' if match['weight'] else 'bias'}"
            )
            if parameter in found.differences:
                raise UserError(f"{path} changes {parameter} twice, under two spellings; choose another file")
            found.differences[parameter] = key
            continue
        module = modules.setdefault(name, ModuleKeys(spelling))
        part = next(part for part in ("down", "up", "alpha") if match[part])
        if getattr(module, part):
            raise UserError(f"{path} changes {name} twice, under two spellings; choose another file")
        setattr(module, part, key)
    incomplete = min((name for name, module in modules.items() if not (module.down and module.up)), default=None)
    if incomplete or not (modules or found.differences):
        raise UserError(
            f"{path} is incomplete: "
            + (f"{incomplete} lacks one of its two factors" if incomplete else "it holds no factors")
            + "; copy or download it again"
        )
    if both := min((name for name in modules if f"{name}.weight" in found.differences), default=None):
        raise UserError(f"{path} changes {both} by factors and by a full difference; choose another file")
    return replace(found, modules=dict(sorted(modules.items())), differences=dict(sorted(found.differences.items())))


def _without_prefixes(name: str) -> str:
    """The module's name without what trainers and wrappers put in front of it or between its parts."""
    name = _WRAPPER.sub("", name)
    while prefix := _PREFIX.match(name):
        name = name[prefix.end() :]
    return name


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:120]}…"
