"""Recompute a golden case of a tiny Phantom transformer: inputs, schedule, guidance branches, trajectory."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ..diffusion.schedule import flow_schedule
from ..diffusion.solvers import make_solver
from ..policies.base import Guidance
from ..policies.load import load_transformer
from ..policies.phantom import guided, predict, with_references
from .checks import Check, compare
from .vace import weight_file

BRANCH, COMBINED = 3e-4, 3e-3
"""Tolerances of the case's README: of one branch (velocities of magnitude 30), and of their guided combination."""


@torch.no_grad()
def verify_case(path: Path) -> list[Check]:
    """Check inputs, schedule, branches, both combinations, and the trajectory by UniPC."""
    given, expected = load_file(path / "inputs.safetensors"), load_file(path / "trajectory.safetensors")
    meta, config = (json.loads((path / f"{name}.json").read_text(encoding="utf-8")) for name in ("meta", "config"))
    model = load_transformer(weight_file(path))
    texts = [_padded(given[f"context_{name}"], config["text_len"]) for name in ("positive", "negative")]
    references = given["reference_latents"][None]
    return [
        *_network_inputs(given["noise"], references, expected),
        *_schedule(meta, expected),
        *_branches(model, references, texts, meta, expected),
        *_trajectory(model, given["noise"], references, texts, meta, expected),
    ]


def _network_inputs(noise: Tensor, references: Tensor, expected: dict[str, Tensor]) -> list[Check]:
    clip = noise[None, :, : -references.shape[2]]
    return [
        compare(name, with_references(clip, shown)[0], expected[name], kind="exact")
        for name, shown in (("input_with_refs", references), ("input_without_refs", torch.zeros_like(references)))
    ]


def _schedule(meta: dict, expected: dict[str, Tensor]) -> list[Check]:
    schedule = flow_schedule(meta["steps"], meta["shift"])
    return [
        compare("sigmas", schedule.sigmas, expected["sigmas"], 1e-6),
        compare("timesteps", schedule.timesteps, expected["timesteps"], kind="exact"),
    ]


def _branches(
    model: nn.Module, references: Tensor, texts: list[Tensor], meta: dict, expected: dict[str, Tensor]
) -> list[Check]:
    results = []
    for step, time in enumerate(expected["timesteps"]):
        clip = expected[f"step{step}.latents"][None, :, : -references.shape[2]]
        present, absent = with_references(clip, references), with_references(clip, torch.zeros_like(references))
        for name, latents, text in (
            ("v_img_text", present, texts[0]),
            ("v_img", present, texts[1]),
            ("v_neg", absent, texts[1]),
        ):
            found = predict(model, latents, time[None], text)[0]
            results.append(compare(f"step{step}.{name}", found, expected[f"step{step}.{name}"], BRANCH))
        scales = {f"step{step}.v_guided": meta}
        if step == 0:
            scales["other_scales.v_guided"] = meta["other_scales"]
        for name, given in scales.items():
            guidance = Guidance(given["guide_scale_text"], given["guide_scale_img"])
            found = guided(model, clip, references, time[None], *texts, guidance)[0]
            results.append(compare(name, found, expected[name][:, : clip.shape[2]], COMBINED))
    return results


def _trajectory(
    model: nn.Module, noise: Tensor, references: Tensor, texts: list[Tensor], meta: dict, expected: dict[str, Tensor]
) -> list[Check]:
    """The clip's frames from noise to the end, by our velocities; no solver mixes them with the references' frames."""
    guidance = Guidance(meta["guide_scale_text"], meta["guide_scale_img"])
    schedule = flow_schedule(meta["steps"], meta["shift"])
    solve = make_solver("unipc", schedule)
    frames = noise.shape[1] - references.shape[2]
    clip, results = noise[None, :, :frames], []
    for step, time in enumerate(schedule.timesteps):
        velocity = guided(model, clip, references, time[None], *texts, guidance)
        clip = solve(clip, velocity, step)
        name = f"step{step}.next_latents"
        results.append(compare(f"{name} (UniPC)", clip[0], expected[name][:, :frames], COMBINED))
    return [*results, compare("final (UniPC)", clip[0], expected["final"], COMBINED)]


def _padded(text: Tensor, length: int) -> Tensor:
    return F.pad(text, (0, 0, 0, length - len(text)))[None]
