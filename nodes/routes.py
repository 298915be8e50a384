"""What the editor's buttons ask for: runs by their id, never a path in or out."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from aiohttp import web
from server import PromptServer

from ..trainers.errors import UserError
from ..trainers.runs import launcher, starting
from ..trainers.runs.folder import RUN_ID, RunFolder
from ..trainers.runs.registry import list_runs, refresh
from ..trainers.runs.summary import summary
from . import folders

ROOT = "/identity_grpo/runs"
STATUS = ("state", "iteration", "iterations", "eta_seconds")
SAVED_ANYHOW = {"stopping": "it saves what is finished before it ends", "finished": "its last LoRA is saved already"}

_stopping: set[str] = set()
_resuming = threading.Lock()


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
    newest = run.newest()
    saved = newest.path.name if newest else ""
    return {"id": run.id, "text": summary(run), "saved": saved} | {name: getattr(status, name) for name in STATUS}


def _stop(request: web.Request) -> dict:
    """Waits for the end, unless an earlier request does: clicks must not pile up threads. At rest it stays as it is."""
    run = _run(request)
    if run.id not in _stopping:
        _stopping.add(run.id)
        try:
            launcher.stop(run)
        finally:
            _stopping.discard(run.id)
    return _told(run)


def _resume(request: web.Request) -> dict:
    run = _run(request)
    # Of two clicks the second finds the run started.
    with _resuming:
        starting.resume(folders.runs_root(), run)
    return _told(run)


def _save(request: web.Request) -> dict:
    run = _run(request)
    state = refresh(run).state
    if state not in ("starting", "running"):
        reason = SAVED_ANYHOW.get(state, "what it had saved is kept, and Resume goes on from there")
        raise UserError(f"run {run.id} is {state} and cannot be asked to save: {reason}")
    run.request("save")
    return _told(run)
