"""Names of weights without what wrappers add to them."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import UserError

WRAPPERS = {
    "model",
    "diffusion_model",
    "transformer",
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
}
"""What ComfyUI, torch.compile, DDP, FSDP and activation checkpointing put in front of names or between their parts."""


def without_wrappers(key: str) -> str:
    """A key without the parts in WRAPPERS."""
    # `net` is a part of diffusers' names of feed-forward layers too.
    return ".".join(part for part in key.split(".") if part not in WRAPPERS).removeprefix("net.")


def by_plain_name(keys: Iterable[str], path: object) -> dict[str, str]:
    """The key by its name without wrappers. Raises UserError when two keys have the same one."""
    names: dict[str, str] = {}
    for key in keys:
        name = without_wrappers(key)
        if name in names:
            raise UserError(f"{path} holds {name} twice, as {names[name]} and {key}; give a file of one model")
        names[name] = key
    return names
