"""Names of weights without what wrappers add to them."""

from __future__ import annotations

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
