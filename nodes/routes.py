"""The HTTP routes of the editor: runs by their id; no path is taken. Those that change something are here."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from server import PromptServer

from ..trainers.errors import UserError, shown
from ..trainers.runs import claims, launcher, requests, starting, trash
from ..trainers.runs.cards import card
from ..trainers.runs.exports import keep
from . import folders
from .desktop import show_file
from .requests import Body, field, handler, run_id, run_of
from .run_views import VIEWS, all_runs, published_file
from .watching import end_watch, renew_watch

ROOT = "/identity_grpo/runs"
TRASH = "/identity_grpo/trash"
WATCH = "/identity_grpo/watch"
DEEPEST = 4  # dots in the name of a setting

_stopping: set[str] = set()


def register() -> None:
    """Add the routes to ComfyUI's server. Those that change something take a POST of application/json."""
    routes = PromptServer.instance.routes
    routes.get(ROOT)(handler(all_runs))
    for below, view in VIEWS.items():
        routes.get(f"{ROOT}/{{id}}{below}")(handler(view))
    routes.get(TRASH)(handler(lambda _request, _: [_describe_deleted(run) for run in _deleted()]))
    posts = {TRASH + "/empty": _empty_trash, TRASH + "/{id}/restore": _restore}
    posts |= {WATCH: renew_watch, WATCH + "/end": end_watch}
    posts |= {f"{ROOT}/{{id}}/{name}": act for name, act in ACTIONS.items()}
    for path, act in posts.items():
        routes.post(path)(handler(act, changes=True))


def _stop(request: web.Request, _: Body) -> dict:
    """Wait for the end of the run, unless an earlier request does: clicks must not pile up threads.

    A run without a process is left as it is.
    """
    run = run_of(request)
    if run.id not in _stopping:
        _stopping.add(run.id)
        try:
            launcher.stop(run)
        finally:
            _stopping.discard(run.id)
    return card(run)


def _resume(request: web.Request, body: Body) -> dict:
    """Continue the run; with `wait` it waits in the queue where its device is taken."""
    run = run_of(request)
    starting.resume(folders.runs_root(), run, field(body, "wait", bool, False))
    return card(run)


def _save(request: web.Request, _: Body) -> dict:
    """Request a checkpoint and its LoRA; `message` shows when they will be written."""
    run = run_of(request)
    message = requests.save_now(run)
    return card(run) | {"message": message}


def _sample(request: web.Request, _: Body) -> dict:
    """Request clips of the present LoRA; `message` shows when they will be sampled."""
    run = run_of(request)
    message = requests.sample_now(run)
    return card(run) | {"message": message}


def _move(request: web.Request, body: Body) -> dict:
    """Move a waiting run `to` another place in the queue: first, up, down, last or a number from 1; `message` shows its
    place."""
    run = run_of(request)
    to = body.get("to")
    place = claims.move(run.path, field(body, "to", int if type(to) is int else str))
    return card(run) | {"message": f"run {run.id} is number {place} of the runs that wait for its device"}


def _keep(request: web.Request, body: Body) -> dict:
    """Keep the LoRA of an `iteration` for good, or, with `kept` false, no longer."""
    run = run_of(request)
    keep(run, field(body, "iteration", int), field(body, "kept", bool, True))
    return card(run)


def _show(request: web.Request, body: Body) -> dict:
    """Open the folder with the LoRA of an `iteration` in the file manager of this computer."""
    run = run_of(request)
    iteration = field(body, "iteration", int)
    path = next((export.path for export in run.exports() if export.iteration == iteration), None)
    if path is None:
        raise UserError(f"run {run.id} has no LoRA of iteration {iteration}")
    show_file(published_file(run, path.name) or path, request)
    return {}


def _rename(request: web.Request, body: Body) -> dict:
    """Give the run the `title`; an empty one removes it."""
    run = run_of(request)
    run.rename(field(body, "title", str))
    return card(run)


def _delete(request: web.Request, _: Body) -> dict:
    run = run_of(request)
    rest = "its reward too" if run.kind == "reward" else "its LoRAs in models/loras stay"
    trash.delete(run)
    return {"id": run.id, "message": f"run {run.id} is in the trash; {rest}"}


def _restore(request: web.Request, _: Body) -> dict:
    wanted = run_id(request)
    if wanted not in [deleted.id for deleted in _deleted()]:
        raise UserError(f"there is no deleted run `{wanted}`")
    return card(trash.restore(folders.runs_root(), wanted))


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
    run = run_of(request)
    changes: dict[str, Any] = {}
    for name, value in field(body, "changes", dict, {}).items():
        if type(value) not in (int, float, bool):
            raise UserError(f"`{shown(name)}` can be changed here only to a number, true or false, not {shown(value)}")
        *sections, last = name.split(".", DEEPEST)
        inner = changes
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise UserError(f"`{shown(name)}` and its section cannot both be changed")
        inner[last] = value
    name = field(body, "name", str, "")
    return card(starting.copy_run(run, changes, name or None))


ACTIONS = {
    "stop": _stop,
    "resume": _resume,
    "save": _save,
    "sample": _sample,
    "move": _move,
    "rename": _rename,
    "keep": _keep,
    "show": _show,
    "delete": _delete,
    "duplicate": _duplicate,
}
