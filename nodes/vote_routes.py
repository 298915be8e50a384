"""The HTTP routes of the voting dialog: the next question of a person, clips as pictures, votes and undo.

Folders are named by what the node's widget holds, reduced to letters, digits and dashes; pairs by the ids that the
server gave them. No path is taken or given.
"""

from __future__ import annotations

import json
import mimetypes
from typing import Any

from aiohttp import web
from server import PromptServer

from ..trainers.errors import UserError, shown
from ..trainers.pictures.sheets import frame_sheet
from ..trainers.preference.folder import PairFolder, PairRecords
from ..trainers.preference.records import PairRecord
from ..trainers.preference.voting import Question, answer, next_question, voting_progress
from .requests import Body, handler
from .votes import pair_folder

ROOT = "/identity_grpo/votes/{name}"
PAIR = ROOT + "/pairs/{pair}"
LONGEST_WHO = 60


def register() -> None:
    """Add the routes to ComfyUI's server. Those that change something take a POST of application/json."""
    routes = PromptServer.instance.routes
    routes.get(ROOT)(handler(_state))
    routes.get(PAIR + "/{side}")(handler(_clip))
    routes.get(PAIR + "/references/{number}")(handler(_reference))
    routes.post(ROOT + "/vote")(handler(_vote, changes=True))
    routes.post(ROOT + "/undo")(handler(_undo, changes=True))


def _folder(request: web.Request) -> PairFolder:
    folder = pair_folder(request.match_info["name"])
    if not folder.exists():
        raise UserError(f"`{folder.path.name}` has no pairs yet; run the node with two videos or a training run")
    return folder


def _who(value: Any) -> str:
    who = value.strip() if isinstance(value, str) else ""
    if not 0 < len(who) <= LONGEST_WHO:
        raise UserError(f"the name `{shown(value)}` has not 1 to {LONGEST_WHO} letters; say who votes")
    return who


def _state(request: web.Request, _: Body) -> web.Response:
    """What the person `who` is asked now, and after it, with how far the person is."""
    return _answered(_folder(request), _who(request.query.get("who")))


def _answered(folder: PairFolder, who: str, **more: Any) -> web.Response:
    records = folder.read()
    asked = next_question(records, who)
    following = next_question(records, who, asked.pair) if asked else None
    progress = voting_progress(records, who)
    again = progress.agreement
    return web.json_response(
        {
            "name": folder.path.name,
            "question": _described(records, asked),
            "following": _described(records, following),
            "voted": progress.voted,
            "pairs": progress.pairs,
            "repeated": again.pairs,
            "same": again.same,
        }
        | more
    )


def _described(records: PairRecords, question: Question | None) -> dict | None:
    if question is None:
        return None
    record = records.pairs[question.pair]
    return {
        "pair": question.pair,
        "swapped": question.swapped,
        "turn": question.turn,
        "prompt": record.prompt,
        "references": len(record.references),
    }


def _record(request: web.Request) -> tuple[PairFolder, PairRecord]:
    folder = _folder(request)
    record = folder.read().pairs.get(request.match_info["pair"])
    if record is None:
        raise UserError("there is no such pair")
    return folder, record


def _clip(request: web.Request, _: Body) -> web.Response:
    """The clip `a` or `b` of a pair as a sheet of frames; its layout is in the header X-Sheet."""
    folder, record = _record(request)
    side = request.match_info["side"]
    if side not in ("a", "b"):
        raise UserError("a pair has the clips a and b")
    path = folder.path / (record.clip_a if side == "a" else record.clip_b)
    sheet = frame_sheet(path, fps=record.fps)
    layout = {name: getattr(sheet, name) for name in ("frames", "columns", "width", "height", "fps")}
    return _picture(sheet.data, sheet.content_type, {"X-Sheet": json.dumps(layout)})


def _reference(request: web.Request, _: Body) -> web.Response:
    folder, record = _record(request)
    number = request.match_info["number"]
    if not (number.isascii() and number.isdigit() and len(number) < 4 and int(number) < len(record.references)):
        raise UserError("there is no such reference image")
    path = folder.path / record.references[int(number)]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"the reference image cannot be read ({error.strerror})") from None
    kind = mimetypes.guess_type(path.name)[0] or ""
    if not kind.startswith("image/") or "svg" in kind:
        raise UserError("the reference is no picture")
    return _picture(data, kind, {})


def _picture(data: bytes, content_type: str, headers: dict[str, str]) -> web.Response:
    # A pair's files never change: they are named by their content.
    kept = {"Cache-Control": "private, max-age=86400, immutable", "X-Content-Type-Options": "nosniff"}
    return web.Response(body=data, content_type=content_type, headers=kept | headers)


def _vote(request: web.Request, body: Body) -> web.Response:
    """Keep the verdict `A`, `B`, `tie` or `skip` on the clips as they were shown; answers with what follows."""
    folder, who = _folder(request), _who(body.get("who"))
    pair, verdict, turn, swapped = (body.get(name) for name in ("pair", "verdict", "turn", "swapped"))
    if not (isinstance(pair, str) and isinstance(verdict, str) and type(turn) is int and type(swapped) is bool):
        raise UserError("a vote has `pair` and `verdict` (texts), `turn` (a number) and `swapped` (true or false)")
    answer(folder, pair, verdict, who, turn, swapped)
    return _answered(folder, who)


def _undo(request: web.Request, body: Body) -> web.Response:
    """Take back the person's newest vote; answers with the question that it answered."""
    folder, who = _folder(request), _who(body.get("who"))
    if folder.undo(who) is None:
        raise UserError("there is no vote to take back")
    return _answered(folder, who)
