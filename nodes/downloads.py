"""The HTTP routes of the button that downloads missing files: what the loaders can name, its size, start and stop.

Files are named by the catalogue of `fetch`; no address and no path is taken. Nothing is asked of any server before a
request that a click has sent.
"""

from __future__ import annotations

from pathlib import Path

import folder_paths
from aiohttp import web
from server import PromptServer

from ..trainers.downloads.background import BackgroundFetch
from ..trainers.downloads.catalog import TASKS, Published, Repository
from ..trainers.downloads.fetch import size_of
from ..trainers.errors import UserError, shown
from .folders import SINGLE_FILES
from .requests import Body, field, handler

ROOT = "/identity_grpo/downloads"
CATALOG = {item.name: item for items in TASKS.values() for item in items}

_fetch = BackgroundFetch()


def register() -> None:
    """Add the routes to ComfyUI's server. Those that reach other servers take a POST of application/json."""
    routes = PromptServer.instance.routes
    routes.get(ROOT)(handler(_state))
    for name, act in {"sizes": _sizes, "start": _start, "stop": _stop}.items():
        routes.post(f"{ROOT}/{name}")(handler(act, changes=True))


def _state(_request: web.Request, _: Body) -> dict:
    """The catalogue, and the download that is or was made since ComfyUI was started."""
    return {"files": [_describe(item) for item in CATALOG.values()], "download": _fetch.status()}


def _describe(item: Published | Repository) -> dict:
    """`choice` is the value by which a loader's widget names it."""
    is_file = isinstance(item, Published) and not item.archive
    choice = f"{item.folder}/{item.name}" if item.folder == SINGLE_FILES else item.name
    return {
        "name": item.name,
        "choice": choice if is_file or item.folder != "loras" else f"{choice}/",
        "folder": f"models/{item.folder}",
        "there": _is_there(item),
        "size": getattr(item, "size", None),
        "licence": item.licence,
        "page": item.page,
    }


def _is_there(item: Published | Repository) -> bool:
    return any(Path(root, item.name).exists() for root in folder_paths.get_folder_paths(item.folder))


def _sizes(_request: web.Request, body: Body) -> dict:
    """Bytes by name; null where the server does not answer or does not say."""
    sizes: dict[str, int | None] = {}
    for item in _named(body):
        try:
            sizes[item.name] = size_of(item)
        except UserError:
            sizes[item.name] = None
    return sizes


def _start(request: web.Request, body: Body) -> dict:
    missing = [item for item in _named(body) if not _is_there(item)]
    if not missing:
        raise UserError("nothing of this is missing; refresh the editor (R)")
    _fetch.start(missing, Path(folder_paths.models_dir))
    return _state(request, body)


def _stop(request: web.Request, body: Body) -> dict:
    _fetch.stop()
    return _state(request, body)


def _named(body: Body) -> list[Published | Repository]:
    names = field(body, "names", list)
    for name in names:
        if not isinstance(name, str) or name not in CATALOG:
            raise UserError(f"`{shown(name)}` is no file that can be downloaded here")
    return [CATALOG[name] for name in dict.fromkeys(names)]
