"""ComfyUI's door to the pack: importing this costs nothing and works where ComfyUI is absent."""

from __future__ import annotations

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI once: the pack's extension."""
    from .nodes import IdentityGrpoExtension

    return IdentityGrpoExtension()
