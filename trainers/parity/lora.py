"""Recompute a golden case: one LoRA applied in several ways."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UserError
from ..lora.formats import LoRA, read_lora, write_native, write_peft
from ..lora.inject import load_lora_into, remove_lora
from ..lora.names import to_original
from ..policies.load import load_transformer
from ..policies.vace import predict
from .cases import case_kind
from .checks import Check, compare, equal
from .vace import weight_file

TOLERANCE = 3e-4
_EXPECTED = re.compile(r"velocity\.(peft|original_merged|comfy\.native|comfy\.native_without_alpha)\.(\d+(?:\.\d+)?)")


def verify_case(path: Path) -> list[Check]:
    """Checks of names, files and velocities. The transformer is that of the `vace` case beside this one."""
    peft, native = read_lora(path / "peft"), read_lora(path / "comfy_native.safetensors")
    given = load_file(path / "velocity.safetensors")
    expected_map = json.loads((path / "module_map.json").read_text(encoding="utf-8"))
    names = {f"base_model.model.{name}": f"diffusion_model.{to_original(name)}" for name in peft.modules}
    results = [equal("module_map", names, expected_map), *_files(path, peft), _equal("native file read", native, peft)]
    model = _transformer(path, peft, given)
    results += [
        compare(key, _velocity(model, given), value, TOLERANCE) for key, value in given.items() if key.endswith(".base")
    ]
    for key in sorted(given):
        match = _EXPECTED.fullmatch(key)
        if match:
            results.append(
                compare(
                    key, _with_adapter(model, given, match[1], float(match[2]), peft, native), given[key], TOLERANCE
                )
            )
    return results


def _files(path: Path, lora: LoRA) -> list[Check]:
    """Checks of the files written from the PEFT adapter: the case's native file, and PEFT's folder read back."""
    with tempfile.TemporaryDirectory() as folder:
        write_native(LoRA(lora.modules, lora.alpha), Path(folder) / "native.safetensors")
        write_peft(lora, Path(folder) / "peft")
        ours, theirs = load_file(Path(folder) / "native.safetensors"), load_file(path / "comfy_native.safetensors")
        again = read_lora(Path(folder) / "peft")
    wrong = sum(
        k not in ours or k not in theirs or not torch.equal(ours[k], theirs[k]) or ours[k].dtype != theirs[k].dtype
        for k in ours.keys() | theirs.keys()
    )
    return [
        Check("native file written", float(wrong), 0.0, "exact", float(wrong > 0)),
        _equal("peft folder written and read", again, lora),
    ]


def _equal(name: str, found: LoRA, expected: LoRA) -> Check:
    wrong = 0
    for module in found.modules.keys() | expected.modules.keys():
        both = module in found.modules and module in expected.modules
        equal = (
            both
            and found.alpha[module] == expected.alpha[module]
            and all(torch.equal(a, b) for a, b in zip(found.modules[module], expected.modules[module], strict=True))
        )
        wrong += not equal
    return Check(name, float(wrong), 0.0, "exact", float(wrong > 0))


def _transformer(path: Path, lora: LoRA, given: dict[str, Tensor]) -> nn.Module:
    """The transformer beside this case that fits the adapter; of several the one that gives the base velocity."""
    fitting = []
    for case in sorted(p for p in path.resolve().parent.iterdir() if p.is_dir() and case_kind(p) == "vace"):
        model = load_transformer(weight_file(case))
        shapes = {n: tuple(m.weight.shape) for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        if all(shapes.get(n) == (b.shape[0], a.shape[1]) for n, (a, b) in lora.modules.items()):
            error = (_velocity(model, given) - given["velocity.original.base"]).abs().max().item()
            fitting.append((error, len(fitting), model))
    if not fitting:
        raise UserError(
            f"the lora case {path} needs the transformer of its vace case: put that case's folder beside it"
        )
    return min(fitting)[2]


@torch.no_grad()
def _velocity(model: nn.Module, given: dict[str, Tensor]) -> Tensor:
    scales = torch.ones(len(model.config.vace_layers))
    return predict(
        model,
        given["noise"][None],
        given["timestep"],
        given["context_padded"][None],
        given["vace_context"][None],
        scales,
    )[0]


def _with_adapter(
    model: nn.Module, given: dict[str, Tensor], how: str, strength: float, peft: LoRA, native: LoRA
) -> Tensor:
    if how == "original_merged":
        return _merged(model, given, strength, native)
    if how == "comfy.native_without_alpha":
        native = LoRA(native.modules, {name: float(native.rank(name)) for name in native.modules})
    load_lora_into(model, peft if how == "peft" else native, strength)
    try:
        return _velocity(model, given)
    finally:
        remove_lora(model)


@torch.no_grad()
def _merged(model: nn.Module, given: dict[str, Tensor], strength: float, lora: LoRA) -> Tensor:
    before = {name: model.get_submodule(name).weight.clone() for name in lora.modules}
    for name, weight in before.items():
        model.get_submodule(name).weight.copy_(weight.double() + lora.merged_delta(name, strength))
    found = _velocity(model, given)
    for name, weight in before.items():
        model.get_submodule(name).weight.copy_(weight)
    return found
