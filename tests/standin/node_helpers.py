"""Values written into a conditioning."""

from __future__ import annotations


def conditioning_set_values(conditioning: list, values: dict | None = None, append: bool = False) -> list:
    """A copy whose every entry also holds `values`; with `append` they extend the lists already there."""
    written = []
    for tokens, options in conditioning:
        held = dict(options)
        for key, value in (values or {}).items():
            held[key] = held.get(key, []) + value if append else value
        written.append([tokens, held])
    return written
