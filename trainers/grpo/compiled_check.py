"""Once in a process: do compiled blocks have the gradients of uncompiled ones?

A compiler's kernels can be wrong where nothing shows it: on a CPU those that PyTorch 2.13 made for blocks of VACE gave
the right velocity and, at some sizes, other gradients. A run would train for days by them. Only the first batch's size
is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import UserError

TOLERANCE = 0.3
"""Of the difference, as a share of the gradient. Half precision makes a few hundredths, a wrong kernel most of it."""


class CompiledCheck:
    """Compares the first gradient that is not zero.

    Where the two differ, the blocks compute uncompiled from then on if `choice` (`policy.compile`) is `auto`; else
    UserError is raised. `log` gets a line with the result.
    """

    def __init__(self, transformer: nn.Module, choice: Literal["auto", "always"], log: Callable[[str], None]) -> None:
        self._transformer, self._choice, self._log = transformer, choice, log

    def __call__(self, parameters: Sequence[nn.Parameter], backward: Callable[[], None]) -> bool:
        """Whether this is done: not while there is no gradient to compare.

        `backward` adds that of some rollouts, and is called with blocks compiled and uncompiled; none is left.
        """
        if not hasattr(torch.compiler, "set_stance"):
            self._log("gradients of compiled blocks are not compared with those of uncompiled ones before PyTorch 2.6")
            return True
        with torch.compiler.set_stance("force_eager"):
            exact = _recomputed(self._transformer, lambda: _gradient(parameters, backward))
        if exact is None:
            self._log("gradients of compiled blocks are not compared: memory ran out for uncompiled ones")
            return True
        if not exact.any():
            return False
        difference = float((_gradient(parameters, backward) - exact).norm() / exact.norm())
        text = f"gradients of compiled blocks differ from those of uncompiled ones by {difference:.1%}"
        if difference <= TOLERANCE:
            self._log(f"{text}: rounding")
        elif self._choice == "auto":
            torch.compiler.set_stance("force_eager")
            self._log(f"{text}, which is more than rounding: the blocks compute uncompiled from here on, more slowly")
        else:
            raise UserError(f"{text}, which is more than rounding; set policy.compile to `never`, or update PyTorch")
        return True


def _gradient(parameters: Sequence[nn.Parameter], backward: Callable[[], None]) -> Tensor:
    """What `backward` adds, as one vector; there is no gradient before and after."""
    backward()
    found = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return torch.cat(found)


def _recomputed(transformer: nn.Module, work: Callable[[], Tensor]) -> Tensor | None:
    """The result of `work` with all blocks recomputed, which uncompiled blocks may need; None if memory runs out."""
    recompute = transformer._gradient_checkpointing_func
    share, recompute.share = recompute.share, 1.0
    try:
        return work()
    except torch.OutOfMemoryError:
        return None
    finally:
        recompute.share = share
