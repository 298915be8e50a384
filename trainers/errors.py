"""The one exception that a user is meant to read, and what its messages are made of."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """Something the user can mend: the message names the input and says what to do.

    The command line prints it without a traceback; nodes raise it as it is.
    """


def shorten(names: Iterable[str], shown: int = 3) -> str:
    """The first of the names in their order, and how many more there are: `a, b, c and 4 more`."""
    named = sorted(names)
    return ", ".join(named[:shown]) + (f" and {len(named) - shown} more" if len(named) > shown else "")


def program() -> str:
    """How the user called this program, for commands that a message proposes."""
    name = Path(sys.argv[0]).name
    return name if name.startswith("identity-grpo") else f"python -m {Path(__file__).resolve().parent.name}"
