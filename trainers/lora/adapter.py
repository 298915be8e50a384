"""A LoRA in memory. Modules carry diffusers' names (`blocks.0.attn1.to_q`); each has a rank and an alpha of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import UserError


@dataclass(frozen=True)
class LoRA:
    """Low-rank changes of linear layers: W + strength alpha / r B A.

    `modules`: diffusers' module name -> (A [r, in], B [out, r]); `alpha`: the same names; `metadata`: of the file,
    without entries about rank and alpha, and without hashes; `differences`: diffusers' parameter name -> what is added
    to it in full; `source`: the file it was read from, for messages.
    Raises UserError when the shapes of a pair do not fit, or a value is not finite or not of a floating-point type.
    """

    modules: dict[str, tuple[Tensor, Tensor]]
    alpha: dict[str, float]
    metadata: dict[str, str] = field(default_factory=dict)
    differences: dict[str, Tensor] = field(default_factory=dict)
    source: str = ""

    def __post_init__(self) -> None:
        for name, (down, up) in self.modules.items():
            check_shapes(name, down.shape, up.shape)
            check_alpha(name, self.alpha[name])
            _check_numbers(name, down)
            _check_numbers(name, up)
        for name, difference in self.differences.items():
            _check_numbers(name, difference)

    def rank(self, name: str) -> int:
        return self.modules[name][0].shape[0]

    def scale(self, name: str) -> float:
        """alpha / r."""
        return self.alpha[name] / self.rank(name)

    def merged_delta(self, name: str, strength: float = 1.0) -> Tensor:
        """What to add to the weight of module `name`: strength alpha / r B A, float64 [out, in]."""
        down, up = self.modules[name]
        return strength * self.scale(name) * (up.double() @ down.double())


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Put `source` in front of the message of a UserError in the block that does not name it."""
    try:
        yield
    except UserError as error:
        if source in str(error):
            raise
        raise UserError(f"{source}: {error}") from error


def check_shapes(name: str, down: Sequence[int], up: Sequence[int]) -> None:
    """Raises UserError unless the shapes are those of the factors A [r, in] and B [out, r] of a linear layer."""
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or not all((*down, *up)):
        raise UserError(
            f"the LoRA's factors of {name} do not fit: A {tuple(down)}, B {tuple(up)}; "
            "only linear layers with A [r, in] and B [out, r] are supported"
        )


def check_alpha(name: str, alpha: float) -> None:
    """Raises UserError unless alpha is finite."""
    if not math.isfinite(alpha):
        raise UserError(
            f"the LoRA's alpha of {name} is {alpha}, which is not finite: the file is broken, use another one"
        )


def _check_numbers(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise UserError(f"the LoRA holds numbers of type {tensor.dtype} in {name}; only floating-point types are read")
    # As float32: torch has no isfinite for 8-bit numbers.
    if not torch.isfinite(tensor.float()).all():
        raise UserError(f"the LoRA holds numbers that are not finite in {name}: it is broken, use an earlier one")
