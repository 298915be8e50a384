"""ComfyUI core's own sampling of the same size, in a process of ComfyUI's interpreter."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...config import PolicyKind, TrainConfig
from ..iteration import PHASES
from ..measure import OUT_OF_MEMORY, Row
from ..sizes import Size, transformer_config, vae_config

PROGRAM = Path(__file__).parent / "comfyui_program.py"
STEPS = 3
"""Steps that are timed of one video."""
NAMES = {
    "patch_size": "patch_size",
    "in_channels": "in_dim",
    "out_channels": "out_dim",
    "text_dim": "text_dim",
    "freq_dim": "freq_dim",
    "ffn_dim": "ffn_dim",
    "num_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "vace_in_channels": "vace_in_dim",
}
"""diffusers' names of a transformer's settings, and ComfyUI's."""


def task_of(size: Size, kind: PolicyKind, config: TrainConfig, references: int, repeats: int) -> dict[str, Any]:
    """What `comfyui_program` is asked for, but for the folder and the device. Guidance is that of training."""
    arguments, video, rollout = transformer_config(size, kind), config.video, config.rollout
    network = {ours: arguments[theirs] for theirs, ours in NAMES.items() if theirs in arguments}
    network["dim"] = arguments["num_attention_heads"] * arguments["attention_head_dim"]
    if kind == "vace":
        network["vace_layers"] = len(arguments["vace_layers"])
    times = vae_config(size).get("temperal_downsample", [False, True, True])
    frames = 1 + (video.frames - 1) // 2 ** sum(times)
    cell = 2 ** len(times)
    one = rollout.image_guidance in (None, rollout.guidance)
    return {
        "kind": kind,
        "network": network,
        "dtype": config.policy.dtype,
        "latents": [16, frames + references * (kind == "vace"), video.height // cell, video.width // cell],
        "references": references,
        "cfg": rollout.guidance,
        "image_cfg": None if kind == "vace" or one else rollout.image_guidance,
        "steps": STEPS,
        "repeats": repeats,
    }


def measure_comfyui(folder: Path, python: Path, task: dict[str, Any], device: torch.device) -> Row:
    """A sampling step of one video; the row's `error` is why there is none."""
    row = Row("ComfyUI: sample step", "video", task["dtype"], STEPS, ours=PHASES["ode"])
    network = task["network"]
    if network["num_layers"] % network.get("vace_layers", 1):
        uneven = f"ComfyUI has no model with {network['vace_layers']} control blocks for {network['num_layers']} layers"
        return replace(row, error=uneven)
    task = task | {"folder": str(folder), "cpu": device.type == "cpu"}
    done = subprocess.run(
        [python, PROGRAM, json.dumps(task)], cwd=folder, capture_output=True, text=True, errors="replace", check=False
    )
    found = _last_line(done)
    error = found.pop("error", "")
    if "out of memory" in error:
        error = OUT_OF_MEMORY
    known = {name: found[name] for name in ("seconds", "peak_bytes") if name in found}
    return replace(row, **known, error=error.strip().split("\n")[0][:200])


def _last_line(done: subprocess.CompletedProcess) -> dict[str, Any]:
    try:
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return {"error": f"ComfyUI's process failed: {reason}"}
