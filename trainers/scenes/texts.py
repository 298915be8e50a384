"""Texts of a prompt set that people write."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError


def read_text(path: Path) -> str:
    """A UTF-8 text file. Raises UserError when it is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}); save it as UTF-8 text") from error
