"""Values that come in through a widget or a link: texts, choices, numbers. Core does not check what a link brings."""

from __future__ import annotations

from collections.abc import Sequence

from comfy_api.latest import io

from ..trainers.errors import UserError
from ..trainers.prompts import EMPTY_PROMPT, is_blank
from ..trainers.prompts import clean_text as clean

FPS = (0.1, 240.0)


def fps_input(tooltip: str, default: float = 16.0) -> io.Input:
    return io.Float.Input("fps", default=default, min=FPS[0], max=FPS[1], step=0.5, tooltip=tooltip)


def prompt_problem(prompt: str | None) -> str | None:
    """What is wrong with a prompt; None for a good one, and for one that a link will bring."""
    return EMPTY_PROMPT if prompt is not None and is_blank(prompt) else None


def clean_prompt(prompt: str) -> str:
    """The prompt, `clean`. Raises UserError for an empty one."""
    if problem := prompt_problem(prompt):
        raise UserError(problem)
    return clean(prompt)


def require_choice(name: str, value: str, options: Sequence[str]) -> None:
    """Raises UserError when `value` is not an option of the input `name`."""
    if value not in options:
        raise UserError(f"{name} `{value}` is not offered here; choose {' or '.join(options)}")


def require_range(name: str, value: float, limits: tuple[float, float]) -> None:
    """Raises UserError when the number of the input `name` is outside of its limits, or NaN."""
    least, most = limits
    if not least <= value <= most:
        raise UserError(f"{name} {value} is outside of {least} to {most}")


def require_given(name: str, value: object, kind: type, source: str) -> None:
    """Raises UserError when a link brings something else than `kind` to the input `name`, as a switch that is off does.

    `source`: the nodes that give it.
    """
    if not isinstance(value, kind):
        got = "nothing" if value is None else type(value).__name__
        raise UserError(
            f"`{name}` got {got} from the node that it is connected to; look at what that node gives (a switch may be "
            f"off), or connect {source}"
        )
