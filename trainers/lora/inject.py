"""A LoRA in the layers of a diffusers transformer: added, trained, disabled, loaded, removed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from ..errors import UserError, shown
from .adapter import LoRA, naming
from .differences import add_differences, check_differences, differences_disabled, remove_differences
from .layer import LoraLinear

TARGETS = r"(?:vace_)?blocks\.\d+\.attn[12]\.(?:to_q|to_k|to_v|to_out\.0)"


def add_lora(transformer: nn.Module, rank: int, alpha: float, seed: int) -> None:
    """Freeze the transformer and add a trainable LoRA to the attention projections of `blocks` and `vace_blocks`.

    A is normal with standard deviation 1/rank and B is zero (PEFT's `gaussian`, as in the published trainer), float32
    whatever the base's dtype; the values depend on `seed` only, not on the device. Raises UserError when there is a
    LoRA already.
    """
    _refuse_second(transformer)
    transformer.requires_grad_(False)
    names = [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(TARGETS, name)
    ]
    if not names:
        raise UserError("this model has no attention projections to add a LoRA to; give a Wan transformer of diffusers")
    _inject(transformer, dict.fromkeys(names, rank), dict.fromkeys(names, alpha))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lora_parameters(transformer).items():
            if ".lora_A." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / rank)
            else:
                parameter.zero_()
            parameter.requires_grad_(True)


def lora_parameters(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """`<module>.lora_A.weight` [r, in] and `.lora_B.weight` [out, r] of every adapted layer, in model order."""
    found = {}
    for name, layer in _layers(transformer):
        found[f"{name}.lora_A.weight"] = layer.lora_A
        found[f"{name}.lora_B.weight"] = layer.lora_B
    return found


@contextmanager
def lora_disabled(transformer: nn.Module) -> Iterator[None]:
    """Within the block the transformer is the base policy: its LoRA is off."""
    layers = [layer for _, layer in _layers(transformer)]
    before = [layer.enabled for layer in layers]
    for layer in layers:
        layer.enabled = False
    try:
        with differences_disabled(transformer):
            yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer.enabled = value


def to_lora(transformer: nn.Module) -> LoRA:
    """A copy, on the CPU, of the transformer's LoRA. Raises UserError when there is none."""
    modules, alpha = {}, {}
    for name, layer in _layers(transformer):
        modules[name] = tuple(factor.detach().cpu().clone() for factor in (layer.lora_A, layer.lora_B))
        alpha[name] = float(layer.scale * layer.rank)
    if not modules:
        raise UserError("this model has no LoRA to save")
    return LoRA(modules, alpha)


def check_fits(transformer: nn.Module, lora: LoRA) -> None:
    """Raises UserError when the LoRA was trained for another policy, or has modules or ranks that do not fit."""
    with naming(lora.source):
        _check_fits(transformer, lora)


def _check_fits(transformer: nn.Module, lora: LoRA) -> None:
    made_for, here = lora.metadata.get("policy"), "vace" if hasattr(transformer, "vace_blocks") else "phantom"
    if made_for not in (None, here):
        raise UserError(
            f"this LoRA was trained for {shown(made_for)}, and this is a {here} model; give one that was trained for "
            f"{here}"
        )
    check_differences(transformer, lora)
    present = dict(_layers(transformer))
    if present and lora.differences:
        raise UserError(
            f"the LoRA changes {next(iter(lora.differences))} without factors, which training cannot continue; choose "
            "a LoRA of A and B factors alone"
        )
    linear = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    for name, (down, up) in lora.modules.items():
        target = (present or linear).get(name)
        if target is None:
            raise UserError(
                f"the LoRA changes {name}, which this model does not have{' adapted' if present else ''}: "
                "it was made for another model, or trains more layers than this run"
            )
        base = target.base if present else target
        if (up.shape[0], down.shape[1]) != (base.out_features, base.in_features):
            raise UserError(
                f"the LoRA's {name} is {up.shape[0]}x{down.shape[1]}, the model's {base.out_features}x"
                f"{base.in_features}: it was made for a model of another size"
            )
        if present and target.rank != lora.rank(name):
            raise UserError(
                f"the LoRA has rank {lora.rank(name)}, the one in training {target.rank}; "
                f"set lora.rank to {lora.rank(name)}"
            )


def load_lora_into(transformer: nn.Module, lora: LoRA, strength: float = 1.0) -> None:
    """Load `lora` into the transformer at `strength`.

    A transformer without a LoRA gets a frozen one with the modules and ranks of `lora`. One that has a LoRA keeps its
    own alpha and trainability: strength and scale of `lora` go into its factors, and modules that `lora` lacks get no
    effect. Raises UserError as `check_fits`, or for a strength that is not finite, before anything is changed.
    """
    if not math.isfinite(strength):
        raise UserError(f"strength {strength} is not a finite number; give one such as 1")
    check_fits(transformer, lora)
    present = dict(_layers(transformer))
    add_differences(transformer, lora, strength)
    if not present:
        # The scale of the file is divided by that of the layer below, which must not be 0.
        alphas = {name: alpha or 1.0 for name, alpha in lora.alpha.items()}
        _inject(transformer, {name: lora.rank(name) for name in lora.modules}, alphas)
        for parameter in lora_parameters(transformer).values():
            parameter.requires_grad_(False)
    with torch.no_grad():
        for name, layer in _layers(transformer):
            if name not in lora.modules:
                layer.lora_B.zero_()
                continue
            down, up = lora.modules[name]
            layer.lora_A.copy_(down)
            layer.lora_B.copy_(up.float() * (strength * lora.scale(name) / layer.scale))


def remove_lora(transformer: nn.Module) -> None:
    """Remove the LoRA and its layers: the transformer is as before."""
    for name, layer in list(_layers(transformer)):
        transformer.set_submodule(name, layer.base)
    remove_differences(transformer)


def _inject(transformer: nn.Module, ranks: Mapping[str, int], alphas: Mapping[str, float]) -> None:
    for name, rank in ranks.items():
        layer = LoraLinear(transformer.get_submodule(name), rank, alphas[name] / rank)
        transformer.set_submodule(name, layer)


def _layers(transformer: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The adapted layers with their names in the bare transformer."""
    for name, module in transformer.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def _refuse_second(transformer: nn.Module) -> None:
    if next(_layers(transformer), None) is not None:
        raise UserError("this model has a LoRA already; remove it before another is added")
