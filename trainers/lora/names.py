"""Names of a Wan transformer's parts: as the original code (and ComfyUI) calls them, and as diffusers does."""

from __future__ import annotations

import re

# (original, diffusers), for one dotted part or two; a rule holds for whole parts only. In the original only norm3 has
# weights.
_WITHIN_BLOCK = [
    ("self_attn", "attn1"),
    ("cross_attn", "attn2"),
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("o", "to_out.0"),
    ("k_img", "add_k_proj"),
    ("v_img", "add_v_proj"),
    ("norm_k_img", "norm_added_k"),
    ("norm3", "norm2"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
    ("before_proj", "proj_in"),
    ("after_proj", "proj_out"),
    ("modulation", "scale_shift_table"),
]
_AROUND = [
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("head.head", "proj_out"),
    ("head.modulation", "scale_shift_table"),
]
_BLOCK = re.compile(r"((?:vace_)?blocks\.\d+)\.(.+)")


def to_diffusers(name: str) -> str:
    """diffusers' name of an original module or parameter; a diffusers name stays what it is."""
    return _renamed(name, [(a, b) for a, b in _WITHIN_BLOCK], _AROUND)


def to_original(name: str) -> str:
    """The original (and ComfyUI's) name of a diffusers module or parameter; an original name stays what it is."""
    return _renamed(name, [(b, a) for a, b in _WITHIN_BLOCK], [(b, a) for a, b in _AROUND])


def _renamed(name: str, within: list[tuple[str, str]], around: list[tuple[str, str]]) -> str:
    block = _BLOCK.fullmatch(name)
    if not block:
        return _replace(name, around)
    return f"{block[1]}.{_replace(block[2], within)}"


def _replace(name: str, rules: list[tuple[str, str]]) -> str:
    """Apply the longest fitting rule at every part, left to right, never twice to the same part."""
    parts, done = name.split("."), []
    while parts:
        for old, new in sorted(rules, key=lambda rule: -rule[0].count(".")):
            length = old.count(".") + 1
            if parts[:length] == old.split("."):
                done.append(new)
                parts = parts[length:]
                break
        else:
            done.append(parts.pop(0))
    return ".".join(done)
