"""A LoRA in the layers of a diffusers transformer: added, trained, disabled, loaded, removed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..errors import UserError
from .adapter import LoRA

ADAPTER = "default"
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
    _inject(transformer, {name: rank for name in names}, {name: alpha for name in names})
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
        found[f"{name}.lora_A.weight"] = layer.lora_A[ADAPTER].weight
        found[f"{name}.lora_B.weight"] = layer.lora_B[ADAPTER].weight
    return found


@contextmanager
def lora_disabled(transformer: nn.Module) -> Iterator[None]:
    """Within the block the transformer is the base policy: its LoRA is off."""
    layers = [layer for _, layer in _layers(transformer)]
    before = [layer._disable_adapters for layer in layers]
    # Not peft's enable_adapters(): that also sets requires_grad to False, which breaks a graph under construction.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer._disable_adapters = value


def to_lora(transformer: nn.Module) -> LoRA:
    """A copy, on the CPU, of the transformer's LoRA. Raises UserError when there is none."""
    modules, alpha = {}, {}
    for name, layer in _layers(transformer):
        modules[name] = tuple(part[ADAPTER].weight.detach().cpu().clone() for part in (layer.lora_A, layer.lora_B))
        alpha[name] = float(layer.scaling[ADAPTER] * layer.r[ADAPTER])
    if not modules:
        raise UserError("this model has no LoRA to save")
    return LoRA(modules, alpha)


def check_fits(transformer: nn.Module, lora: LoRA) -> None:
    """Raises UserError when the LoRA was trained for another policy, or has modules or ranks that do not fit."""
    made_for, here = lora.metadata.get("policy"), "vace" if hasattr(transformer, "vace_blocks") else "phantom"
    if made_for not in (None, here):
        raise UserError(
            f"this LoRA was trained for {made_for}, and this is a {here} model; give one that was trained for {here}"
        )
    present = dict(_layers(transformer))
    linear = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    for name, (down, up) in lora.modules.items():
        target = (present or linear).get(name)
        if target is None:
            raise UserError(
                f"the LoRA changes {name}, which this model does not have{' adapted' if present else ''}: "
                "it was made for another model, or trains more layers than this run"
            )
        if (up.shape[0], down.shape[1]) != (target.out_features, target.in_features):
            raise UserError(
                f"the LoRA's {name} is {up.shape[0]}x{down.shape[1]}, the model's {target.out_features}x"
                f"{target.in_features}: it was made for a model of another size"
            )
        if present and target.r[ADAPTER] != lora.rank(name):
            raise UserError(
                f"the LoRA has rank {lora.rank(name)}, the one in training {target.r[ADAPTER]}; "
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
    if not present:
        # The scale of the file is divided by that of the layer below, which must not be 0.
        alphas = {name: alpha or 1.0 for name, alpha in lora.alpha.items()}
        _inject(transformer, {name: lora.rank(name) for name in lora.modules}, alphas)
        for parameter in lora_parameters(transformer).values():
            parameter.requires_grad_(False)
    with torch.no_grad():
        for name, layer in _layers(transformer):
            if name not in lora.modules:
                layer.lora_B[ADAPTER].weight.zero_()
                continue
            down, up = lora.modules[name]
            layer.lora_A[ADAPTER].weight.copy_(down)
            layer.lora_B[ADAPTER].weight.copy_(up.float() * (strength * lora.scale(name) / layer.scaling[ADAPTER]))


def remove_lora(transformer: nn.Module) -> None:
    """Remove the LoRA and its layers: the transformer is as before."""
    for name, layer in list(_layers(transformer)):
        parent, _, child = name.rpartition(".")
        setattr(transformer.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(transformer, "peft_config"):
        del transformer.peft_config


def _inject(transformer: nn.Module, ranks: dict[str, int], alphas: dict[str, float]) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    first = next(iter(ranks))
    exactly = "|".join(map(re.escape, ranks))
    config = LoraConfig(
        r=ranks[first],
        lora_alpha=alphas[first],
        init_lora_weights="gaussian",
        target_modules=rf"(?:{exactly})",
        rank_pattern={f"^{re.escape(n)}": r for n, r in ranks.items() if r != ranks[first]},
        alpha_pattern={f"^{re.escape(n)}": a for n, a in alphas.items() if a != alphas[first]},
    )
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, transformer, adapter_name=ADAPTER)
    for name, layer in _layers(transformer):
        layer.scaling[ADAPTER] = alphas[name] / ranks[name]
        layer.lora_A[ADAPTER].float()
        layer.lora_B[ADAPTER].float()


def _layers(transformer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The adapted layers with their names in the bare transformer."""
    from peft.tuners.lora import LoraLayer

    for name, module in transformer.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _refuse_second(transformer: nn.Module) -> None:
    if next(_layers(transformer), None) is not None:
        raise UserError("this model has a LoRA already; remove it before another is added")
