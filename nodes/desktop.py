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


def can_show(request: web.Request) -> bool:
    """Whether the browser is on this computer, and this computer has a file manager."""
    near = is_loopback(request.remote or "") and not any(name in request.headers for name in PROXIED)
    return near and _program() is not None


def show_file(path: Path, request: web.Request) -> None:
    """Open the folder of the file. Raises UserError for a browser elsewhere, and without a file manager."""
    program = _program()
    if program is None or not can_show(request):
        raise UserError(f"the folder can be opened only on the computer that runs ComfyUI; it is {path.parent} there")
    arguments = ["-R", str(path)] if sys.platform == "darwin" else [str(path.parent)]
    quiet = subprocess.DEVNULL
    # Never a shell line: the path is an argument of its own.
    adopt(subprocess.Popen([program, *arguments], stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True))


def _program() -> str | None:
    if os.name == "nt":
        return shutil.which("explorer")
    if sys.platform == "darwin":
        return shutil.which("open")
    return shutil.which("xdg-open") if any(os.environ.get(name) for name in SCREENS) else None
