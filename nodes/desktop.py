"""Showing a file in the file manager of the computer that ComfyUI runs on, for a browser on that computer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from aiohttp import web

from ..trainers.errors import UserError
from ..trainers.processes import adopt
from .origins import is_loopback

PROXIED = ("Forwarded", "X-Forwarded-For", "X-Real-IP")
SCREENS = ("DISPLAY", "WAYLAND_DISPLAY")
REFUSAL_SECONDS = 2.0
"""xdg-open that finds no file manager ends with a status before that."""


def can_show(request: web.Request) -> bool:
    """Whether the browser is on this computer, and this computer has a file manager."""
    return _is_near(request) and _program() is not None


def show_file(path: Path, request: web.Request) -> None:
    """Open the folder of the file. Raises UserError for a browser elsewhere, and where no file manager opens it."""
    if not _is_near(request):
        raise UserError(
            f"the folder can be opened only by a browser on the computer that runs ComfyUI; it is {path.parent} there"
        )
    program = _program()
    if program is None:
        raise UserError(
            f"no file manager was found, or ComfyUI was started without a screen; the folder is {path.parent}"
        )
    arguments = ["-R", str(path)] if sys.platform == "darwin" else [str(path.parent)]
    quiet = subprocess.DEVNULL
    # Never a shell line: the path is an argument of its own.
    process = subprocess.Popen([program, *arguments], stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    adopt(process)
    if os.name == "nt":
        return  # Explorer's status is 1 when it has opened the folder
    try:
        status = process.wait(REFUSAL_SECONDS)
    except subprocess.TimeoutExpired:
        return  # the file manager itself, which is open
    if status:
        raise UserError(
            f"the file manager did not open ({Path(program).name} ended with {status}); the folder is {path.parent}"
        )


def _is_near(request: web.Request) -> bool:
    return is_loopback(request.remote or "") and not any(name in request.headers for name in PROXIED)


def _program() -> str | None:
    if os.name == "nt":
        return shutil.which("explorer")
    if sys.platform == "darwin":
        return shutil.which("open")
    return shutil.which("xdg-open") if any(os.environ.get(name) for name in SCREENS) else None
