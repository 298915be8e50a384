"""Recomputing golden kits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """One quantity of a kit, recomputed: how far it is from what the kit states, and how far it may be."""

    name: str
    error: float
    tolerance: float
    kind: Literal["absolute", "relative", "exact"]

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance
