"""ComfyUI's entry to the pack; importing it costs nothing and works without ComfyUI."""

from __future__ import annotations

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The pack's extension; ComfyUI calls this once."""
    from .nodes import IdentityGrpoExtension

    return IdentityGrpoExtension()
