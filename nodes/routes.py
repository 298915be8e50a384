"""The HTTP routes of the editor's buttons: runs by their id; no path is taken or given."""

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
from .origins import origin_problem

ROOT = "/identity_grpo/runs"
STATUS = ("state", "iteration", "iterations", "eta_seconds")
UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What reading the files of a damaged run may raise."""

_stopping: set[str] = set()
_resuming = threading.Lock()


def register() -> None:
    """Add the routes to ComfyUI's server. Those that change something take a POST of application/json."""
    routes = PromptServer.instance.routes
    routes.get(ROOT)(_handler(lambda _: [_describe(run) for run in list_runs(folders.runs_root())]))
    routes.get(ROOT + "/{id}")(_handler(lambda request: _describe(_run(request))))
    for name, act in (("stop", _stop), ("resume", _resume), ("save", _save)):
        routes.post(f"{ROOT}/{{id}}/{name}")(_handler(act, changes=True))


def _handler(act: Callable[[web.Request], object], changes: bool = False):
    """A handler that answers with the result of `act`, computed in a thread, or with the reason of a refusal."""

    async def handle(request: web.Request) -> web.Response:
        if problem := origin_problem(request):
            return web.json_response({"error": problem}, status=403)
        # A page of another origin can send only simple content types without the server's consent.
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


def _describe(run: RunFolder) -> dict:
    """The run for the editor; `saved`: its newest LoRA, `resumes_from`: the iteration of its newest checkpoint.

    One that cannot be read has the state `damaged`: it must not hide the others in a list.
    """
    try:
        status, newest, checkpoints = refresh(run), run.newest(), run.checkpoints()
        return {name: getattr(status, name) for name in STATUS} | {
            "id": run.id,
            "text": summary(run),
            "saved": newest.path.name if newest else "",
            "resumes_from": int(checkpoints[-1].name) if checkpoints else None,
        }
    except UNREADABLE as error:
        text = f"{run.id}: damaged, it cannot be read ({error})"
        known = {"id": run.id, "text": text, "saved": "", "resumes_from": None, "state": "damaged", "iteration": 0}
        return dict.fromkeys(STATUS) | known


def _stop(request: web.Request) -> dict:
    """Wait for the end of the run, unless an earlier request does: clicks must not pile up threads.

    A run without a process is left as it is.
    """
    run = _run(request)
    if run.id not in _stopping:
        _stopping.add(run.id)
        try:
            launcher.stop(run)
        finally:
            _stopping.discard(run.id)
    return _describe(run)


def _resume(request: web.Request) -> dict:
    run = _run(request)
    # The second of two clicks finds the run started.
    with _resuming:
        starting.resume(folders.runs_root(), run)
    return _describe(run)


def _save(request: web.Request) -> dict:
    """Request a checkpoint and its LoRA; `message` shows when they will be written."""
    run = _run(request)
    status = refresh(run)
    if status.state not in ("starting", "running"):
        raise UserError(f"run {run.id} is {status.state} and cannot save: {_without_saving(run, status.state)}")
    run.request("save")
    after = status.iteration if status.state == "starting" else status.iteration + 1
    last = after if status.iterations is None else min(after, status.iterations)
    return _describe(run) | {"message": f"run {run.id} will save after iteration {last}"}


def _without_saving(run: RunFolder, state: str) -> str:
    """What a run keeps that does not train now."""
    if state == "stopping":
        return "it saves what is finished before it ends"
    if state == "finished":
        return "its last LoRA is saved already"
    saved = run.checkpoints()
    return f"it is saved at iteration {int(saved[-1].name)}" if saved else "nothing was saved, Resume begins again"
