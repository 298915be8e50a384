"""Passes of a transformer that processes can only make together, when they have unequal work.

A sharded transformer gathers its blocks from all processes in every pass. Which process has how many videos, and when
one is asked to stop, is decided elsewhere; here they agree before every pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Stopped

DONE, FORWARD, TRAINED, BACKWARD, FAILED = range(5)
"""What a process announces: that it has no work left, a forward pass without or with gradient, the backward pass of
the latter, that it has failed or was stopped. The largest number counts."""


class Lockstep:
    """Makes every process take part in each pass of `transformer`, within the sections that `begin` opens.

    Before a pass all processes exchange one number. A process without work makes the same passes over a single token,
    and its result counts nowhere. Where one process fails or is stopped between passes, the others get Stopped at their
    next one.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self._transformer = transformer
        self._number = torch.zeros(1, dtype=torch.int32, device=next(transformer.parameters()).device)
        self._following = self._ended = self._within = False
        transformer.register_forward_pre_hook(self._before)
        transformer.register_forward_hook(self._after)

    def begin(self) -> None:
        """A section of work begins in every process."""
        self._ended = False

    def finish(self) -> None:
        """This process's work is done: make the passes of the others, until all are done. Raises Stopped."""
        held: list[Tensor] = []
        self._following = True
        try:
            # A token is a size of its own, which would be compiled for.
            with torch.compiler.set_stance("force_eager"):
                while (announced := self._announce(DONE)) != DONE:
                    if announced == BACKWARD:
                        output = held.pop()
                        output.backward(torch.zeros_like(output))
                    else:
                        with torch.set_grad_enabled(announced == TRAINED):
                            output = self._transformer(**self._token(), return_dict=False)[0]
                        if announced == TRAINED:
                            held.append(output)
        finally:
            self._following = False

    def leave(self) -> bool:
        """This process has failed or was stopped: announce it. False in the middle of a pass, where the others wait for
        its blocks and would not notice.
        """
        if self._within:
            return False
        if not self._ended:
            self._number.fill_(FAILED)
            torch.distributed.all_reduce(self._number, torch.distributed.ReduceOp.MAX)
        return True

    def _announce(self, own: int) -> int:
        """What the processes do next. Raises Stopped when one of them has left."""
        self._number.fill_(own)
        torch.distributed.all_reduce(self._number, torch.distributed.ReduceOp.MAX)
        announced = int(self._number)
        if announced == FAILED:
            self._ended = True
            raise Stopped
        if own not in (DONE, announced):
            self._within = True
            raise RuntimeError(f"a pass of kind {own} while another process makes one of kind {announced}")
        return announced

    def _before(self, *_: Any) -> None:
        if not self._following:
            self._announce(TRAINED if torch.is_grad_enabled() else FORWARD)
            self._within = True

    def _after(self, _module: nn.Module, _inputs: Any, output: tuple[Tensor, ...]) -> None:
        if self._following:
            return
        self._within = False
        if output[0].requires_grad:
            output[0].register_hook(self._before_backward)

    def _before_backward(self, _gradient: Tensor) -> None:
        self._announce(BACKWARD)
        self._within = True
        torch.autograd.Variable._execution_engine.queue_callback(self._after_backward)

    def _after_backward(self) -> None:
        self._within = False

    def _token(self) -> dict[str, Tensor]:
        """Inputs of the transformer that make one token."""
        config, weight = self._transformer.config, self._transformer.patch_embedding.weight

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=weight.dtype, device=weight.device)

        inputs = {
            "hidden_states": zeros(1, config.in_channels, *config.patch_size),
            "timestep": zeros(1).float(),
            "encoder_hidden_states": zeros(1, 1, config.text_dim),
        }
        if hasattr(self._transformer, "vace_blocks"):
            inputs["control_hidden_states"] = zeros(1, config.vace_in_channels, *config.patch_size)
        return inputs
