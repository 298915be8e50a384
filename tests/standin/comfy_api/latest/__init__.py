"""The newest version of ComfyUI's interface for nodes, as far as the pack uses it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from . import io, ui

__all__ = ["ComfyExtension", "InputImpl", "Types", "io", "ui"]


class ComfyExtension(ABC):
    async def on_load(self) -> None:
        return None

    @abstractmethod
    async def get_node_list(self) -> list[type[io.ComfyNode]]: ...


@dataclass
class _VideoComponents:
    images: Any
    frame_rate: Fraction
    audio: Any = None


class _VideoFromComponents:
    def __init__(self, components: _VideoComponents) -> None:
        self._components = components

    def get_components(self) -> _VideoComponents:
        return self._components


class Types:
    VideoComponents = _VideoComponents


class InputImpl:
    VideoFromComponents = _VideoFromComponents
