"""What a node returns in place of a value that is not there."""

from __future__ import annotations


class ExecutionBlocker:
    """No node that is given this is executed; without a message silently."""

    def __init__(self, message: str | None) -> None:
        self.message = message
