"""The HTTP routes of the editor's buttons: runs by their id; no path is taken or given."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from aiohttp import web
from server import PromptServer

from ..trainers.errors import UserError, shown
from ..trainers.runs import launcher, starting, trash
from ..trainers.runs.folder import RUN_ID, RunFolder
from ..trainers.runs.registry import list_runs, refresh
from ..trainers.runs.summary import summary
from . import folders
from .origins import origin_problem

ROOT = "/identity_grpo/runs"
TRASH = "/identity_grpo/trash"
STATUS = ("state", "active", "place", "iteration", "iterations", "eta_seconds")
MOST_ROWS = 500
"""Rows of metrics in an answer: parsing more would keep ComfyUI's server from other requests."""
MOST_LINES = 1000
LONGEST_BODY = 65_536  # bytes
DEEPEST = 4  # dots in the name of a setting
UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What reading the files of a damaged run may raise."""

_stopping: set[str] = set()

Body = dict[str, Any]
T = TypeVar("T")
KINDS = {str: "text", bool: "true or false", dict: "a JSON object"}


def register() -> None:
    """Add the routes to ComfyUI's server. Those that change something take a POST of application/json."""
    routes = PromptServer.instance.routes
    routes.get(ROOT)(_handler(lambda _request, _: [_describe(run) for run in list_runs(folders.runs_root())]))
    routes.get(ROOT + "/{id}")(_handler(lambda request, _: _describe(_run(request))))
    routes.get(ROOT + "/{id}/metrics")(_handler(_metrics))
    routes.get(ROOT + "/{id}/log")(_handler(_log))
    routes.get(TRASH)(_handler(lambda _request, _: [_describe_deleted(run) for run in _deleted()]))
    routes.post(TRASH + "/empty")(_handler(_empty_trash, changes=True))
    routes.post(TRASH + "/{id}/restore")(_handler(_restore, changes=True))
    for name, act in ACTIONS.items():
        routes.post(f"{ROOT}/{{id}}/{name}")(_handler(act, changes=True))


def _handler(act: Callable[[web.Request, Body], object], changes: bool = False):
    """A handler that answers with the result of `act(request, body)`, computed in a thread, or with the reason of a
    refusal. The body of a POST is a JSON object, or empty."""

    async def handle(request: web.Request) -> web.Response:
        if problem := origin_problem(request):
            return web.json_response({"error": problem}, status=403)
        # A page of another origin can send only simple content types without the server's consent.
        if changes and request.content_type != "application/json":
            return web.json_response({"error": "send application/json"}, status=415)
        try:
            body = await _body(request) if changes else {}
            return web.json_response(await asyncio.to_thread(act, request, body))
        except UserError as error:
            return web.json_response({"error": str(error)}, status=404 if request.method == "GET" else 409)

    return handle


async def _body(request: web.Request) -> Body:
    text = b""
    async for part in request.content.iter_any():
        text += part
        if len(text) > LONGEST_BODY:
            raise UserError(f"the request is longer than {LONGEST_BODY} bytes")
    try:
        body = json.loads(text or "{}", parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the request is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise UserError("the request must be a JSON object")
    return body


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _id(request: web.Request) -> str:
    run_id = request.match_info["id"]
    if not RUN_ID.fullmatch(run_id):
        raise UserError("a run's id has lower-case letters, digits and dashes")
    return run_id


def _run(request: web.Request) -> RunFolder:
    return folders.find_run(_id(request))


def _field(body: Body, name: str, kind: type[T], default: T | None = None) -> T:
    """A field of the request. Raises UserError for another type, and for one without a default that is missing."""
    value = body.get(name, default)
    if type(value) is not kind:
        raise UserError(f"`{name}` must be {KINDS[kind]}, not {shown(value)}")
    return value


def _count(request: web.Request, name: str, default: int, most: int) -> int:
    """A whole number of the query. Raises UserError for anything else."""
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text) <= most):
        raise UserError(f"`{name}` must be a whole number from 0 to {most}, not `{shown(text)}`")
    return int(text)


def _describe(run: RunFolder) -> dict:
    """The run for the editor; `saved`: its newest LoRA, `resumes_from`: the iteration of its newest checkpoint.

    One that cannot be read has the state `damaged`: it must not hide the others in a list.
    """
    try:
        status, newest, checkpoints = refresh(run), run.newest(), run.checkpoints()
        return {name: getattr(status, name) for name in STATUS} | {
            "id": run.id,
            "title": run.title,
            "text": summary(run),
            "saved": newest.path.name if newest else "",
            "resumes_from": int(checkpoints[-1].name) if checkpoints else None,
        }
    except UNREADABLE as error:
        text = f"{run.id}: damaged, it cannot be read ({error})"
        known = {
            "id": run.id,
            "title": "",
            "active": False,
            "text": text,
            "saved": "",
            "resumes_from": None,
            "state": "damaged",
            "iteration": 0,
        }
        return dict.fromkeys(STATUS) | known


def _stop(request: web.Request, _: Body) -> dict:
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


def _resume(request: web.Request, body: Body) -> dict:
    """Continue the run; with `wait` it waits in the queue where its device is taken."""
    run = _run(request)
    starting.resume(folders.runs_root(), run, _field(body, "wait", bool, False))
    return _describe(run)


def _save(request: web.Request, _: Body) -> dict:
    """Request a checkpoint and its LoRA; `message` shows when they will be written."""
    run = _run(request)
    status = refresh(run)
    if status.state not in ("starting", "running"):
        raise UserError(f"run {run.id} is {status.state} and cannot save: {_without_saving(run, status.state)}")
    run.request("save")
    after = status.iteration if status.state == "starting" else status.iteration + 1
    last = after if status.iterations is None else min(after, status.iterations)
    return _describe(run) | {"message": f"run {run.id} will save after iteration {last}"}


def _rename(request: web.Request, body: Body) -> dict:
    """Give the run the `title`; an empty one removes it."""
    run = _run(request)
    run.rename(_field(body, "title", str))
    return _describe(run)


def _delete(request: web.Request, _: Body) -> dict:
    run = _run(request)
    trash.delete(run)
    return {"id": run.id, "message": f"run {run.id} is in the trash; its LoRAs in models/loras stay"}


def _restore(request: web.Request, _: Body) -> dict:
    wanted = _id(request)
    if wanted not in [deleted.id for deleted in _deleted()]:
        raise UserError(f"there is no deleted run `{wanted}`")
    return _describe(trash.restore(folders.runs_root(), wanted))


def _empty_trash(_request: web.Request, _: Body) -> dict:
    return {"removed": trash.empty(folders.runs_root())}


def _deleted() -> list[trash.DeletedRun]:
    return trash.deleted_runs(folders.runs_root())


def _describe_deleted(run: trash.DeletedRun) -> dict:
    return {"id": run.id, "deleted": run.deleted}


def _duplicate(request: web.Request, body: Body) -> dict:
    """A new run with the settings of this one and the `changes` (dotted name -> number or switch); Resume starts it.

    Settings that are text are refused: they name files.
    """
    run = _run(request)
    changes: dict[str, Any] = {}
    for name, value in _field(body, "changes", dict, {}).items():
        if type(value) not in (int, float, bool):
            raise UserError(f"`{shown(name)}` can be changed here only to a number, true or false, not {shown(value)}")
        *sections, last = name.split(".", DEEPEST)
        inner = changes
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise UserError(f"`{shown(name)}` and its section cannot both be changed")
        inner[last] = value
    name = _field(body, "name", str, "")
    return _describe(starting.copy_run(run, changes, name or None))


def _metrics(request: web.Request, _: Body) -> dict:
    """The rows of metrics after the iteration `since` (-1, the default: from the start), oldest first; `more`: whether
    further rows follow the last of them."""
    run, since = _run(request), _since(request)
    rows = run.metrics_since(since, MOST_ROWS)
    return {"rows": rows, "more": len(rows) >= MOST_ROWS}


def _since(request: web.Request) -> int:
    return -1 if request.query.get("since", "-1") == "-1" else _count(request, "since", 0, 2**53)


def _log(request: web.Request, _: Body) -> dict:
    """The last `lines` lines of the run's log."""
    run = _run(request)
    return {"text": run.log_tail(_count(request, "lines", 100, MOST_LINES))}


def _without_saving(run: RunFolder, state: str) -> str:
    """What a run keeps that does not train now."""
    if state == "stopping":
        return "it saves what is finished before it ends"
    if state == "finished":
        return "its last LoRA is saved already"
    saved = run.checkpoints()
    return f"it is saved at iteration {int(saved[-1].name)}" if saved else "nothing was saved, Resume begins again"


ACTIONS = {
    "stop": _stop,
    "resume": _resume,
    "save": _save,
    "rename": _rename,
    "delete": _delete,
    "duplicate": _duplicate,
}
