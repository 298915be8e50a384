"""Weights put into models, refused unless they are complete."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from .errors import UserError, shorten


def load_full_state(model: nn.Module, state: dict[str, Tensor], source: object) -> None:
    """Make the tensors of `state` the parameters of `model` (which may be on the meta device), without a copy.

    `source` is what they were read from. Raises UserError for weights that are missing, are not the model's, or have
    another shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    _refuse("lacks", wanted.keys() - state.keys(), model, source)
    _refuse("has more than its weights:", state.keys() - wanted.keys(), model, source)
    others = [name for name, shape in wanted.items() if tuple(state[name].shape) != shape]
    _refuse("has weights of other shapes:", others, model, source)
    model.load_state_dict(state, assign=True)


def require_complete(loaded: tuple[nn.Module, dict[str, Any]], source: object) -> nn.Module:
    """The model of a `from_pretrained(..., output_loading_info=True)`.

    Raises UserError when weights were missing: `from_pretrained` fills them with noise.
    """
    model, found = loaded
    _refuse("lacks", found["missing_keys"], model, source)
    return model


def _refuse(fault: str, names: Iterable[str], model: nn.Module, source: object) -> None:
    if listed := shorten(names):
        remedy = "give the model downloaded to its end" if fault == "lacks" else "give the file of such a model"
        raise UserError(f"{source} is not a complete {type(model).__name__}: it {fault} {listed}; {remedy}")
