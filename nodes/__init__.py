"""The pack's nodes: the only package that imports ComfyUI. One module per family, each with its classes in `NODES`."""

from __future__ import annotations

import logging
from importlib import import_module

from comfy_api.latest import ComfyExtension, io

from ..trainers.errors import UserError
from . import downloads, folders, routes, vote_routes
from .examples import offer_examples

FAMILIES = (
    "policies",
    "samplers",
    "retries",
    "loras",
    "native",
    "rewards",
    "combined_rewards",
    "face_networks",
    "faces",
    "prompt_sets",
    "runs",
    "votes",
    "reward_runs",
    "compare_rewards",
)

logger = logging.getLogger(__name__)


class IdentityGrpoExtension(ComfyExtension):
    """The pack as ComfyUI loads it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        # Called once, like on_load, which releases before 0.13 do not call.
        folders.register()
        routes.register()
        vote_routes.register()
        downloads.register()
        offer_examples()
        logger.info("Identity-GRPO: %s", folders.found())
        nodes = [node for family in FAMILIES for node in import_module(f".{family}", __package__).NODES]
        _shorten_modules(UserError)
        return nodes


def _shorten_modules(error: type[Exception]) -> None:
    """ComfyUI shows `<module>.<name>: <message>`, and the name of a pack's module begins with its folder's path."""
    error.__module__ = "identity_grpo"
    for kind in error.__subclasses__():
        _shorten_modules(kind)
