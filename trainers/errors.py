"""The exceptions of users, by what they gave or what they asked, and what messages are made of."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path


class UserError(ValueError):
    """An input that cannot be used: the message names it with its value, what was expected, and what to do.

    The command line prints it without a traceback; nodes raise it as it is.
    """


class Stopped(Exception):
    """The user asked to stop. What was saved last is where it resumes."""


def shorten(names: Iterable[str], shown: int = 3) -> str:
    """The first of the names in their order, and how many more there are: `a, b, c and 4 more`."""
    named = sorted(names)
    return ", ".join(named[:shown]) + (f" and {len(named) - shown} more" if len(named) > shown else "")


def listed(problems: Sequence[str], most: int = 10) -> str:
    """The problems as the end of a message, a line each: the first of them, and how many more there are."""
    more = [f"… and {len(problems) - most} more"] if len(problems) > most else []
    return "".join(f"\n  {problem}" for problem in [*problems[:most], *more])


def shown(value: object, most: int = 200) -> str:
    """A value for a message; what was given by mistake (a data URL, a prompt, a page of digits) is shortened."""
    text = str(value)
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 5 :]}"


def meant(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names as the end of a sentence; empty when none is near."""
    near = get_close_matches(name, list(known), 1)
    return f"; did you mean `{near[0]}`?" if near else ""


def is_utf8(text: str) -> bool:
    """Whether the text can be written: names of files that are no UTF-8 hold lone surrogates in Python."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def program() -> str:
    """How the user called this program, for commands that a message proposes."""
    name = Path(sys.argv[0]).name
    return name if name.startswith("identity-grpo") else f"python -m {Path(__file__).resolve().parent.name}"


def command_line(*arguments: str | Path) -> str:
    """A command of this program for the user to copy; it works in any folder when its paths are absolute."""
    words = [str(argument) for argument in arguments]
    return f"{program()} {subprocess.list2cmdline(words) if os.name == 'nt' else shlex.join(words)}"
