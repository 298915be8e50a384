"""A LoRA with its strength, as people write it: FILE, or FILE:STRENGTH."""

from __future__ import annotations

MOST_STRENGTH = 100


def split_strength(text: str) -> tuple[str, float]:
    """File and strength (1 if there is none) of `FILE:STRENGTH`. Raises ValueError for a strength out of range."""
    file, colon, number = text.rpartition(":")
    try:
        strength = float(number)
    except ValueError:
        return text, 1.0
    if not (colon and file):
        return text, 1.0
    if not abs(strength) <= MOST_STRENGTH:
        raise ValueError(f"{text} has the strength {number}; give a number from -{MOST_STRENGTH} to {MOST_STRENGTH}")
    return file, strength
