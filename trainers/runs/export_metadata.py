"""What a run's exports say about themselves in their header, by the names that other tools read.

`modelspec.*` (Stability AI's ModelSpec) and `ss_*` (sd-scripts, musubi-tuner) are shown by ComfyUI, Lora-Manager and
others; the run's own are plain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import PurePath
from typing import Any

from ..config import BUILT_IN, BUILT_IN_LORAS, PolicyKind, TrainConfig, split_strength
from ..policies.frozen_loras import describe_frozen

TITLES = {"vace": "VACE", "phantom": "Phantom"}
BASES = {1536: "Wan Video 1.3B t2v", 5120: "Wan Video 14B t2v"}
"""Civitai's names of the base models, which Lora-Manager sorts by; VACE and Phantom are of the text-to-video model."""


def run_metadata(config: TrainConfig) -> dict[str, str]:
    """The entries that all exports of a run share."""
    frozen = describe_frozen(config.policy)
    entries = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "wan2.1/lora",
        "modelspec.implementation": "https://github.com/Wan-Video/Wan2.1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.lora.rank),
        "ss_network_alpha": f"{config.lora.alpha:g}",
        "identity_grpo.config": json.dumps(_without_folders(config), separators=(",", ":")),
    }
    return entries | ({"frozen_loras": json.dumps(frozen)} if frozen else {})


def export_metadata(
    shared: Mapping[str, str], config: TrainConfig, run: str, kind: PolicyKind, iteration: int, width: int
) -> dict[str, str]:
    """All entries of the export of one iteration; `shared`: those of `run_metadata`, `width`: of the transformer."""
    frozen = json.loads(shared.get("frozen_loras", "[]"))
    names = ", ".join(f"{one['file']} at {one['strength']:g}" for one in frozen)
    guidance = config.evaluation.guidance or config.rollout.guidance
    return {
        **shared,
        "run": run,
        "iteration": str(iteration),
        "policy": kind,
        "modelspec.title": f"{run}, iteration {iteration}",
        "modelspec.date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "modelspec.description": f"Keeps the people of the reference images, for {TITLES[kind]} of Wan 2.1; trained by "
        f"Identity-GRPO for {iteration} iterations" + (f" under {names}" if names else ""),
        "modelspec.usage_hint": "No trigger words: give one reference image per person and describe each in the "
        f"prompt. Evaluated with {config.evaluation.steps} steps, cfg {guidance:g}, shift {config.rollout.shift:g}"
        + (f"; use it together with {names}" if names else ""),
        "ss_base_model_version": BASES.get(width, "Wan Video"),
        "ss_output_name": f"{run}-{iteration:06d}",
    }


def _without_folders(config: TrainConfig) -> dict[str, Any]:
    """The settings, of every path only its last part: an export is published, and folders name people."""

    def name(value: str | None) -> str | None:
        return value if value is None or value in BUILT_IN else PurePath(value).name

    values = config.model_dump(mode="json")
    for owner, keys in (
        (values, ("prompts", "evaluation_prompts", "start_lora", "publish")),
        (values["policy"], ("source", "vace_module", "text_encoder", "vae")),
        (values["reward"], ("source", "base_model")),
    ):
        owner |= {key: name(owner[key]) for key in keys}
    named = [split_strength(text) for text in values["policy"]["loras"]]
    values["policy"]["loras"] = [
        f"{file if file in BUILT_IN_LORAS else name(file)}:{strength:g}" for file, strength in named
    ]
    return values
