"""What the editor may read of a run: GET routes that change nothing."""

from __future__ import annotations

import io
from pathlib import Path

from aiohttp import web

from ..trainers.errors import UserError, shown
from ..trainers.pictures.reading import read_picture
from ..trainers.pictures.sheets import MOST_FRAMES, frame_sheet
from ..trainers.runs.cards import card, cards
from ..trainers.runs.chosen_settings import chosen_settings
from ..trainers.runs.exports import asked_iterations
from ..trainers.runs.folder import RunFolder
from ..trainers.runs.gallery import clip_file, gallery, iteration_scores, reference_picture
from ..trainers.runs.history import curves, metrics_table
from ..trainers.runs.registry import list_runs
from . import folders
from .desktop import can_show
from .requests import Body, path_count, query_count, run_of

MOST_ROWS = 500
"""Rows of metrics in an answer: parsing more would keep ComfyUI's server from other requests."""
MOST_POINTS = 500  # of a curve, for the same reason
MOST_LINES = 1000
REFERENCE_PIXELS = 192  # of the longer side of a reference image
PRIVATE = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=3600"}


def all_runs(_request: web.Request, _: Body) -> list[dict]:
    return cards(list_runs(folders.runs_root()))


def one_run(request: web.Request, _: Body) -> dict:
    return card(run_of(request))


def metrics(request: web.Request, _: Body) -> dict | web.Response:
    """The rows of metrics after the iteration `since` (-1, the default: from the start), oldest first; `more`: whether
    further rows follow the last of them. With `points` the rows of the run, thinned to so many of either kind."""
    run = run_of(request)
    if "points" in request.query:
        points = query_count(request, "points", 0, MOST_POINTS)
        if points < 2:
            raise UserError(f"`points` must be a whole number from 2 to {MOST_POINTS}, not {points}")
        text = f'{{"rows": {curves(run, points)}, "more": false}}'
        return web.Response(text=text, content_type="application/json")
    since = -1 if request.query.get("since", "-1") == "-1" else query_count(request, "since", 0, 2**53)
    rows = run.metrics().since(since, MOST_ROWS)
    return {"rows": rows, "more": len(rows) >= MOST_ROWS}


def table(request: web.Request, _: Body) -> web.Response:
    """All metrics as a CSV file."""
    run = run_of(request)
    headers = {"Content-Disposition": f'attachment; filename="{run.id}.csv"', "X-Content-Type-Options": "nosniff"}
    return web.Response(text=metrics_table(run)[0], content_type="text/csv", headers=headers)


def log(request: web.Request, _: Body) -> dict:
    """The last `lines` lines of the run's log."""
    run = run_of(request)
    return {"text": run.log_tail(query_count(request, "lines", 100, MOST_LINES))}


def settings(request: web.Request, _: Body) -> dict:
    run = run_of(request)
    config = run.settings()
    return {"preset": config.preset, "settings": chosen_settings(config), "folder": str(run.path)}


def exports(request: web.Request, _: Body) -> dict:
    """`files`: its LoRAs, newest first; `choice`: what they are called in ComfyUI's list of LoRAs, empty for one that
    is not published there. `showable`: whether their folder can be shown to the user who asks."""
    run = run_of(request)
    found = list(reversed(run.exports()))
    measured = run.metrics()
    scores = {row["iteration"]: row for row in measured.evaluations({export.iteration for export in found})}
    kept, best, newest = asked_iterations(run), run.best(measured), run.newest()
    files = [
        {
            "iteration": export.iteration,
            "name": export.path.name,
            "path": str(published_file(run, export.path.name) or export.path),
            "bytes": export.path.stat().st_size,
            "written": export.path.stat().st_mtime,
            "reward": scores.get(export.iteration, {}).get("margin"),
            "judge": scores.get(export.iteration, {}).get("identity"),
            "best": export == best,
            "newest": export == newest,
            "kept": export.iteration in kept,
            "choice": _choice(run, export.path.name),
        }
        for export in found
    ]
    return {"files": files, "showable": can_show(request)}


def published_file(run: RunFolder, name: str) -> Path | None:
    """The copy of an export that loaders list; None while there is none."""
    path = folders.published_root() / run.id / name
    return path if path.is_file() else None


def _choice(run: RunFolder, name: str) -> str:
    return f"{folders.published_root().name}/{run.id}/{name}" if published_file(run, name) else ""


def clips(request: web.Request, _: Body) -> dict:
    return gallery(run_of(request))


def scores(request: web.Request, _: Body) -> dict:
    return iteration_scores(run_of(request), path_count(request, "iteration"))


def clip(request: web.Request, _: Body) -> web.Response:
    """The animation as the run wrote it."""
    path = clip_file(run_of(request), path_count(request, "iteration"), path_count(request, "number"))
    return web.Response(body=path.read_bytes(), content_type="image/webp", headers=PRIVATE)


def frames(request: web.Request, _: Body) -> web.Response:
    """All frames of a clip in one JPEG; the headers say how they lie in it."""
    width = request.query.get("width", "192")
    if width not in map(str, MOST_FRAMES):
        raise UserError(f"`width` must be one of {', '.join(map(str, MOST_FRAMES))}, not `{shown(width)}`")
    path = clip_file(run_of(request), path_count(request, "iteration"), path_count(request, "number"))
    sheet = frame_sheet(path, int(width))
    names = ("frames", "columns", "width", "height", "fps")
    layout = {f"X-{name.capitalize()}": f"{getattr(sheet, name):g}" for name in names}
    return web.Response(body=sheet.data, content_type=sheet.content_type, headers=PRIVATE | layout)


def reference(request: web.Request, _: Body) -> web.Response:
    """A small copy of a reference image of a held-out item."""
    run = run_of(request)
    source = reference_picture(run, path_count(request, "number"), path_count(request, "place"))
    picture = read_picture(source)
    picture.thumbnail((REFERENCE_PIXELS, REFERENCE_PIXELS))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=88)
    return web.Response(body=out.getvalue(), content_type="image/jpeg", headers=PRIVATE)


VIEWS = {
    "": one_run,
    "/metrics": metrics,
    "/metrics.csv": table,
    "/log": log,
    "/settings": settings,
    "/exports": exports,
    "/clips": clips,
    "/clips/{iteration}": scores,
    "/clips/{iteration}/{number}": clip,
    "/clips/{iteration}/{number}/frames": frames,
    "/references/{number}/{place}": reference,
}
"""By the address below that of the run."""
