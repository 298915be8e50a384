"""The one exception that a user is meant to read, and lists for its message."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend: the message names the input and says what to do.

    The command line prints it without a traceback; nodes raise it as it is.
    """


def some(names: Iterable[str], shown: int = 3) -> str:
    """The first of the names in their order, and how many more there are: `a, b, c and 4 more`."""
    named = sorted(names)
    return ", ".join(named[:shown]) + (f" and {len(named) - shown} more" if len(named) > shown else "")
