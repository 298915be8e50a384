"""What a request of the editor may be: its run, its fields and its numbers, each refused before anything is done."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from aiohttp import web

from ..trainers.errors import UserError, shown
from ..trainers.runs.folder import RUN_ID, RunFolder
from . import folders
from .origins import origin_problem

LONGEST_BODY = 65_536  # bytes
KINDS = {str: "text", int: "a whole number", bool: "true or false", list: "a list", dict: "a JSON object"}

Body = dict[str, Any]
T = TypeVar("T")


def handler(act: Callable[[web.Request, Body], object], changes: bool = False):
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
            return await asyncio.to_thread(_answer, act, request, body)
        except UserError as error:
            return web.json_response({"error": str(error)}, status=409 if changes else 404)
        except OSError as error:
            if changes:  # a folder that cannot be written
                return web.json_response({"error": f"this cannot be done now: {error}"}, status=409)
            # It was deleted or rewritten while it was read.
            return web.json_response({"error": f"this cannot be read now: {error}"}, status=404)

    return handle


def _answer(act: Callable[[web.Request, Body], object], request: web.Request, body: Body) -> web.Response:
    """In the thread too: the JSON of a long curve would keep the server's loop from other requests."""
    answer = act(request, body)
    return answer if isinstance(answer, web.Response) else web.json_response(answer)


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


def run_id(request: web.Request) -> str:
    found = request.match_info["id"]
    if not RUN_ID.fullmatch(found):
        raise UserError("a run's id has lower-case letters, digits and dashes")
    return found


def run_of(request: web.Request) -> RunFolder:
    return folders.run_by_id(run_id(request))


def field(body: Body, name: str, kind: type[T], default: T | None = None) -> T:
    """A field of the request. Raises UserError for another type, and for one without a default that is missing."""
    value = body.get(name, default)
    if type(value) is not kind:
        raise UserError(f"`{name}` must be {KINDS[kind]}, not {shown(value)}")
    return value


def count(name: str, text: str, most: int) -> int:
    """A whole number of an address. Raises UserError for anything else."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text) <= most):
        raise UserError(f"`{name}` must be a whole number from 0 to {most}, not `{shown(text)}`")
    return int(text)


def query_count(request: web.Request, name: str, default: int, most: int) -> int:
    return count(name, request.query.get(name, str(default)), most)


def path_count(request: web.Request, name: str, most: int = 10**9) -> int:
    return count(name, request.match_info[name], most)
