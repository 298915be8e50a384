"""Recompute a golden case of a tiny VACE transformer and its control input."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ..lora.names import to_diffusers
from ..policies.load import load_transformer
from ..policies.vace import control_latents, predict, split_source
from .checks import Check, compare, equal


def verify_case(path: Path) -> list[Check]:
    """Check layout, names and velocities with the tolerances of the case's README."""
    given = load_file(path / "conditioning.safetensors")
    results = [
        r
        for name in sorted(key.removesuffix(".vace_context") for key in given if key.endswith(".vace_context"))
        for r in _layout(name, given)
    ]
    weights = weight_file(path)
    with safe_open(weights, "pt") as file:
        names = {name: to_diffusers(name) for name in list(file.keys())}
    results.append(equal("key_map", names, json.loads((path / "key_map.json").read_text(encoding="utf-8"))))
    ours, theirs = load_transformer(weights), load_transformer(path / "diffusers")
    state, expected = ours.state_dict(), theirs.state_dict()
    results.append(equal("weights.names", sorted(state), sorted(expected)))
    unequal = sum(not torch.equal(state[n], expected[n]) for n in state.keys() & expected.keys())
    results.append(Check("weights.values", float(unequal), 0.0, "exact", float(unequal > 0)))
    text_len = json.loads((path / "config.json").read_text(encoding="utf-8"))["text_len"]
    for kind, model in (("original", ours), ("diffusers", theirs)):
        results += _velocities(kind, model, path, given, text_len)
    return results


def weight_file(path: Path) -> Path:
    """The case's transformer in the original's naming."""
    others = {f"{name}.safetensors" for name in ("conditioning", "velocity", "inputs", "trajectory")}
    found = sorted(p for p in path.glob("*.safetensors") if p.name not in others)
    if not found:
        raise FileNotFoundError(f"{path}/*.safetensors with the transformer's weights")
    return found[0]


def _layout(name: str, given: dict[str, Tensor]) -> list[Check]:
    case = {key.removeprefix(f"{name}."): value for key, value in given.items() if key.startswith(f"{name}.")}
    inactive, reactive = case["latent_inactive"], case["latent_reactive"]
    references = list(case.get("latent_refs", ()))
    # Without a source clip both parts are the encoding of the zero clip.
    video, mask = given["source_frames"], given["source_mask"][0]
    if torch.equal(inactive, reactive):
        video, mask = torch.zeros_like(video), torch.ones_like(mask)
    found = control_latents(inactive, reactive, references, mask)
    halves = 2 * inactive.shape[0]
    results = [
        compare(f"{name}.z0", found[:halves], case["z0"], 1e-6),
        compare(f"{name}.m0", found[halves:], case["m0"], kind="exact"),
        compare(f"{name}.vace_context", found, case["vace_context"], 1e-6),
    ]
    if "stub_A" in given:
        kept, redone = (_stub_encode(part, inactive, given) for part in split_source(video, mask))
        results += [
            compare(f"{name}.latent_inactive", kept, inactive, 1e-5),
            compare(f"{name}.latent_reactive", redone, reactive, 1e-5),
        ]
        pictures = given["references"][: len(references)]
        results += [
            compare(f"{name}.latent_refs.{i}", _stub_encode(pictures[i], latent, given), latent, 1e-5)
            for i, latent in enumerate(references)
        ]
    return results


def _stub_encode(video: Tensor, like: Tensor, given: dict[str, Tensor]) -> Tensor:
    """Encode [3, F, H, W] by the case's stand-in for a VAE, to the shape of `like`.

    Spatial means; frame 0 alone, then means of 4 frames; then A rgb + b.
    """
    cell = video.shape[2] // like.shape[2]
    pooled = F.avg_pool2d(video.transpose(0, 1), cell)
    times = [pooled[:1]] + [pooled[start : start + 4].mean(0, keepdim=True) for start in range(1, len(pooled), 4)]
    return torch.einsum("zc,fchw->zfhw", given["stub_A"], torch.cat(times)) + given["stub_b"][:, None, None, None]


@torch.no_grad()
def _velocities(kind: str, model: nn.Module, path: Path, conditioning: dict[str, Tensor], text_len: int) -> list[Check]:
    given = load_file(path / "velocity.safetensors")
    results = []
    for name, case in json.loads((path / "cases.json").read_text(encoding="utf-8"))["cases"].items():
        scales = torch.full((len(model.config.vace_layers),), float(case["scale"]))
        for k, sample in enumerate(case["samples"]):
            text = given[f"context{case['context'][k]}"]
            found = predict(
                model,
                given[f"noise.{sample}"][None],
                torch.tensor([case["t"][k]]),
                F.pad(text, (0, 0, 0, text_len - len(text)))[None],
                conditioning[f"{sample}.vace_context"][None],
                scales,
            )
            results.append(
                compare(f"velocity.{name}.{k} ({kind} weights)", found[0], given[f"velocity.{name}.{k}"], 2e-4)
            )
    return results
