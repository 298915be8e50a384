"""Several LoRAs at once: one that acts as all of them, and LoRAs that become part of the weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .adapter import LoRA
from .inject import check_fits, load_lora_into


def combine(loras: Sequence[tuple[LoRA, float]]) -> LoRA:
    """The LoRA that acts at strength 1 as all of `loras` do, each at its strength; float32, without metadata.

    Factors of the same module are stacked, so that its rank is the sum of theirs; full differences are added up.
    """
    factors: dict[str, list[tuple[Tensor, Tensor]]] = {}
    differences: dict[str, Tensor] = {}
    for lora, strength in loras:
        for name, (down, up) in lora.modules.items():
            factors.setdefault(name, []).append((down.float(), up.float() * (strength * lora.scale(name))))
        for name, difference in lora.differences.items():
            change = difference.float() * strength
            differences[name] = differences[name] + change if name in differences else change
    modules = {
        name: (torch.cat([a for a, _ in own]), torch.cat([b for _, b in own], 1)) for name, own in factors.items()
    }
    return LoRA(modules, {name: float(len(down)) for name, (down, _) in modules.items()}, {}, differences)


def load_loras_into(transformer: nn.Module, loras: Sequence[tuple[LoRA, float]]) -> None:
    """Load several LoRAs, each at its strength, into a transformer without one; they act together.

    Raises UserError as `load_lora_into`, before anything is changed.
    """
    if len(loras) == 1:
        load_lora_into(transformer, *loras[0])
    elif loras:
        for lora, _ in loras:
            check_fits(transformer, lora)
        load_lora_into(transformer, combine(loras))


@torch.no_grad()
def merge_loras(transformer: nn.Module, loras: Sequence[tuple[LoRA, float]]) -> None:
    """Make LoRAs, each at its strength, part of the transformer's weights, for good.

    All are added up in float32 and rounded once to the type of the weight, as ComfyUI does. The transformer has no
    LoRA yet. Raises UserError as `check_fits`, before anything is changed.
    """
    for lora, _ in loras:
        check_fits(transformer, lora)
    both = combine(loras)
    changes = {f"{name}.weight": (up, down) for name, (down, up) in both.modules.items()}
    for name in changes.keys() | both.differences.keys():
        parameter = transformer.get_parameter(name)
        total = parameter.float()
        if name in changes:
            up, down = (factor.to(parameter.device) for factor in changes[name])
            total = torch.addmm(total, up, down)
        if name in both.differences:
            total = total + both.differences[name].to(parameter.device)
        # In memory of its own: the weights may be those of a mapped file.
        parameter.data = total.to(parameter.dtype)
