"""What the editor's buttons ask for: runs by their id, never a path in or out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web
from server import PromptServer

from ..trainers.errors import UserError
from ..trainers.runs import launcher, starting
from ..trainers.runs.folder import RUN_ID, RunFolder
from ..trainers.runs.registry import is_alive, list_runs, refresh
from ..trainers.runs.summary import summary
from . import folders

ROOT = "/identity_grpo/runs"
STATUS = ("state", "iteration", "iterations", "eta_seconds")


def register() -> None:
    """Add the routes to ComfyUI's server. Those that change something want a POST of application/json."""
    routes = PromptServer.instance.routes
    routes.get(ROOT)(_answering(lambda request: [_told(run) for run in list_runs(folders.runs_root())]))
    routes.get(ROOT + "/{id}")(_answering(lambda request: _told(_run(request))))
    for name, act in (("stop", _stop), ("resume", _resume), ("save", _save)):
        routes.post(f"{ROOT}/{{id}}/{name}")(_answering(act, changes=True))


def _answering(act: Callable[[web.Request], object], changes: bool = False):
    """A handler that answers with what `act` gives, or with the reason why not."""

    async def handle(request: web.Request) -> web.Response:
        # A page of another origin can only send simple content types without being asked about it first.
        if changes and request.content_type != "application/json":
            return web.json_response({"error": "send application/json"}, status=415)
        try:
            return web.json_response(await asyncio.to_thread(act, request))
        except UserError as error:
            return web.json_response({"error": str(error)}, status=404 if request.method == "GET" else 409)

    return handle


def _run(request: web.Request) -> RunFolder:
    run_id = request.match_info["id"]
    if not RUN_ID.fullmatch(run_id):
        raise UserError("a run's id has lower-case letters, digits and dashes")
    return folders.find_run(run_id)


def _told(run: RunFolder) -> dict:
    status = refresh(run)
    saved = max((p.name for p in run.exports.glob("*.safetensors")), default="")
    return {"id": run.id, "text": summary(run), "saved": saved} | {name: status.get(name) for name in STATUS}


def _stop(request: web.Request) -> dict:
    run = _run(request)
    launcher.stop(run)
    return _told(run)


def _resume(request: web.Request) -> dict:
    run = _run(request)
    starting.resume(folders.runs_root(), run)
    return _told(run)


def _save(request: web.Request) -> dict:
    run = _run(request)
    if not is_alive(run):
        raise UserError(f"run {run.id} is {run.status()['state']}: what it has learned is saved already")
    run.request("save")
    return _told(run)
