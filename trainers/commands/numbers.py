"""Numbers as arguments; without imports that `comfyui` could not make before anything is installed."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable


def number_between(low: float, high: float, kind: type[int | float] = int) -> Callable[[str], float]:
    """For `type=` of an argument: a number of this kind from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise ArgumentTypeError(
                f"`{text}` is not {'an integer' if kind is int else 'a number'} from {low} to {high}"
            )
        return value

    return parse
