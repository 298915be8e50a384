"""Prompt sets: rows of reference images and a prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class PromptItem:
    """One row of a prompt set.

    `references` holds one picture per person, in order: a file, or RGB pixels uint8 [H, W, 3].
    `extra` carries what only the item's own world understands (TinyWorld keeps its scene there).
    """

    id: str
    prompt: str
    references: tuple[Path | np.ndarray, ...]
    negative: str = ""
    extra: dict[str, Any] = field(default_factory=dict, compare=False)
