"""Names of a Wan transformer's modules: those of the original code and ComfyUI, and those of diffusers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

_ATTENTION = ("q", "k", "v", "o", "norm_q", "norm_k")
IN_BLOCK = (
    *(f"self_attn.{part}" for part in _ATTENTION),
    *(f"cross_attn.{part}" for part in (*_ATTENTION, "k_img", "v_img", "norm_k_img")),
    "norm3",
    "ffn.0",
    "ffn.2",
    "modulation",
    "before_proj",
    "after_proj",
)
AROUND = (
    "patch_embedding",
    "vace_patch_embedding",
    "text_embedding.0",
    "text_embedding.2",
    "time_embedding.0",
    "time_embedding.2",
    "time_projection.1",
    "img_emb.proj.0",
    "img_emb.proj.1",
    "img_emb.proj.3",
    "img_emb.proj.4",
    "head.head",
    "head.modulation",
)
"""All of a Wan 2.1 transformer that has weights, by the original's names: in a block, and outside of the blocks."""

_BLOCK = re.compile(r"((?:vace_)?blocks\.\d+)\.(.+)")
_FLAT_BLOCK = re.compile(r"((?:vace_)?blocks)_(\d{1,4})_(.+)")


def to_diffusers(name: str) -> str:
    """diffusers' name of a module or parameter of the original; any other name is returned as is."""
    in_block, around = _diffusers_names()
    return _rename(name, in_block, around)


def to_original(name: str) -> str:
    """The original's (and ComfyUI's) name of a module or parameter of diffusers; any other name is returned as is."""
    in_block, around = _original_names()
    return _rename(name, in_block, around)


def find_module(name: str) -> str | None:
    """diffusers' name of a module by either name, with dots or underscores; None if Wan has no such module.

    Underscores alone are ambiguous (`self_attn_q`, `ffn_0`), so the name is looked up in the list of all names.
    """
    flat = name.replace(".", "_")
    block = _FLAT_BLOCK.fullmatch(flat)
    if not block:
        return _flat_names()[1].get(flat)
    found = _flat_names()[0].get(block[3])
    return found and f"{block[1]}.{int(block[2])}.{found}"


@cache
def _diffusers_names() -> tuple[dict[str, str], dict[str, str]]:
    """diffusers' name of everything in IN_BLOCK and in AROUND, by diffusers' own converter."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    def convert(prefix: str, names: tuple[str, ...]) -> dict[str, str]:
        renamed = convert_wan_transformer_to_diffusers({f"{prefix}{name}.weight": name for name in names})
        return {name: key.removeprefix(prefix).removesuffix(".weight") for key, name in renamed.items()}

    return convert("blocks.0.", IN_BLOCK), convert("", AROUND)


@cache
def _original_names() -> tuple[dict[str, str], dict[str, str]]:
    in_block, around = _diffusers_names()
    return {new: old for old, new in in_block.items()}, {new: old for old, new in around.items()}


@cache
def _flat_names() -> tuple[dict[str, str], dict[str, str]]:
    """diffusers' name of everything by either name with underscores for dots, in a block and outside."""
    in_block, around = (
        {name.replace(".", "_"): new for old, new in names.items() for name in (old, new)}
        for names in _diffusers_names()
    )
    return in_block, around


def _rename(name: str, in_block: Mapping[str, str], around: Mapping[str, str]) -> str:
    block = _BLOCK.fullmatch(name)
    prefix, rest, names = (f"{block[1]}.", block[2], in_block) if block else ("", name, around)
    if rest in names:
        return prefix + names[rest]
    module, dot, parameter = rest.rpartition(".")
    return f"{prefix}{names.get(module, module)}{dot}{parameter}"
