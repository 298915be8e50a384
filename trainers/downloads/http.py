"""Downloads that continue after an interruption, and are checked before they get their name."""

from __future__ import annotations

import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import sha256_of

BLOCK = 1 << 20
TIMEOUT = 60  # seconds without an answer
ATTEMPTS = 5
SPARE = 1 << 30  # bytes that are left free on the disk
LARGEST_ANSWER = 64 << 20  # bytes of JSON
AGENT = {"User-Agent": "identity-grpo"}
FAILURES = (OSError, HTTPException)  # urllib's URLError and timeouts are OSErrors


def download(
    url: str,
    path: Path,
    size: int | None = None,
    sha256: str | None = None,
    report: Callable[[int, int | None], None] = lambda done, total: None,
    pause: float = 2.0,
) -> str:
    """Download `url` to `path`; returns the file's SHA-256.

    What an earlier attempt left in `<name>.partial` is continued, if the server still has the same file. `report` gets
    the bytes that are there and those of the whole (None while that is not known). A lost connection is tried again.
    Raises UserError when the server refuses, the disk is too small, or size or checksum are not the expected ones; the
    wrong file is removed then.
    """
    partial, mark = path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.partial.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            total = _receive(url, partial, mark, size, report)
            break
        except urllib.error.HTTPError as error:
            raise UserError(f"{url}: the server answers {error.code} {error.reason}; open it in a browser") from error
        except FAILURES as error:
            if attempt == ATTEMPTS:
                raise UserError(
                    f"{url}: the connection failed ({error}); what was received is kept, run the command again"
                ) from error
            time.sleep(pause)
    found = sha256_of(partial)
    expected = size if size is not None else total
    if (expected is not None and _bytes(partial) != expected) or (sha256 and found != sha256):
        what = f"{_bytes(partial)} bytes, SHA-256 {found}"
        partial.unlink()
        mark.unlink(missing_ok=True)
        raise UserError(
            f"{url} is not what was expected: {what}, expected {expected} bytes"
            + (f", SHA-256 {sha256}" if sha256 else "")
            + "; it was removed, try again or another mirror"
        )
    partial.replace(path)
    mark.unlink(missing_ok=True)
    return found


def read_json(url: str) -> Any:
    """The JSON at `url`. Raises UserError when the server does not answer with some."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=AGENT), timeout=TIMEOUT) as answer:
            return json.loads(answer.read(LARGEST_ANSWER))
    except (*FAILURES, ValueError) as error:
        raise UserError(f"{url}: no answer that can be read ({error}); try again later") from error


def content_length(url: str) -> int | None:
    """The bytes of the file at `url`; None when the server does not say. Raises UserError when it does not answer."""
    try:
        asked = urllib.request.Request(url, headers=AGENT, method="HEAD")
        with urllib.request.urlopen(asked, timeout=TIMEOUT) as answer:
            length = answer.headers.get("Content-Length") or ""
    except FAILURES as error:
        raise UserError(f"{url}: no answer ({error}); try again later") from error
    return int(length) if length.isdecimal() else None


def _receive(
    url: str, partial: Path, mark: Path, size: int | None, report: Callable[[int, int | None], None]
) -> int | None:
    """Append to `partial` what is missing; returns the size of the whole, if the server says it."""
    have = _bytes(partial)
    headers = dict(AGENT)
    if have and (known := _read_mark(mark, url)):
        headers |= {"Range": f"bytes={have}-", "If-Range": known}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and size == have:  # nothing is missing
            return have
        raise
    with answer:
        continued = answer.status == 206
        length = answer.headers.get("Content-Length")
        have = have if continued else 0
        total = have + int(length) if length and length.isdecimal() else size
        _require_space(partial, (total or 0) - have)
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        mark.write_text(json.dumps({"url": url, "tag": "" if tag.startswith("W/") else tag}), encoding="utf-8")
        with open(partial, "ab" if continued else "wb") as file:
            report(have, total)
            while block := answer.read(BLOCK):
                file.write(block)
                have += len(block)
                report(have, total)
    if total is not None and have < total:
        raise OSError(f"it ended after {have} of {total} bytes")
    return total


def _require_space(partial: Path, missing: int) -> None:
    free = shutil.disk_usage(partial.parent).free
    if missing + SPARE > free:
        raise UserError(
            f"{partial.parent} has {free / 1e9:.1f} GB free, and {missing / 1e9:.1f} GB are to be downloaded; make room"
        )


def _read_mark(mark: Path, url: str) -> str:
    """What identifies the file on the server that a partial download is of; empty when that is not known."""
    try:
        values = json.loads(mark.read_text(encoding="utf-8"))
        return values["tag"] if values["url"] == url else ""
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
