"""Presets: named sets of settings, laid over the defaults of `sections`. Data only.

Numbers of `paper` are those of the published recipe (arXiv 2510.14256 and its released `config/dgx.py`).
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

WAN_NEGATIVE_PROMPT = (Path(__file__).parent / "wan_negative_prompt.txt").read_text(encoding="utf-8").strip()
"""Wan 2.1's default (`sample_neg_prompt` in its wan/configs/shared_config.py), verbatim: the published recipe, VACE and
Phantom use it. In a file of its own because comfy-test refuses Chinese in Python sources.
"""


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with the nested `changes` laid over it; neither is modified."""
    merged = deepcopy(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else deepcopy(value)
    return merged


PRESETS: dict[str, dict[str, Any]] = {
    # The published recipe, 24 of 25 steps trained.
    "paper": {
        "negative_prompt": WAN_NEGATIVE_PROMPT,
        "policy": {"dtype": "bfloat16"},
        "reward": {"dtype": "bfloat16"},
        "optim": {"gradient_checkpointing": True},
        "evaluation": {"video": {"height": 480, "width": 832, "frames": 81}},
    },
    # A short random window in the noisier half, ratios normalised (GRPO-Guard). Measured at the training size: a
    # held-out video of the published size costs as much as forty of training.
    "fast": {
        "negative_prompt": WAN_NEGATIVE_PROMPT,
        "policy": {"dtype": "bfloat16"},
        "reward": {"dtype": "bfloat16"},
        "rollout": {"window": {"kind": "random", "size": 3}, "steps": 16},
        "optim": {"ratio": "guard", "clip_range": 2e-6, "kl": 0.0, "gradient_checkpointing": True},
        "evaluation": {"steps": 30},
    },
    # TinyWorld on two CPU cores.
    "tiny": {
        "iterations": 24,
        "video": {"height": 48, "width": 80, "frames": 9},
        "rollout": {
            "steps": 8,
            "guidance": 1.0,
            "micro_batch": 32,
            "groups_per_update": 16,
            "updates_per_iteration": 1,
            "window": {"kind": "random", "size": 3, "last": 6},
        },
        "optim": {"learning_rate": 2e-3, "clip_range": 1e-5, "micro_batch": 32},
        "ema": {"every": 1},
        "evaluation": {"steps": 8, "items": 48},
    },
}
RECIPES = tuple(PRESETS)
"""Presets by what is done; each has one of the same name with `-phantom` for the other kind of policy."""

# The paper names no sampling settings for Phantom. Decided here: shift 5 and the scales 5 (references) and 7.5 (text)
# of Phantom's own release, wherever the published recipe has VACE's shift 3 and guidance 4.5, in training as in
# evaluation. What is trained is then what is used, at three branches a step.
PRESETS["paper-phantom"] = merge(PRESETS["paper"], {"rollout": {"shift": 5.0, "guidance": 7.5, "image_guidance": 5.0}})
# Training without guidance needs one branch of three; the release's scales are kept for evaluation.
PRESETS["fast-phantom"] = merge(
    PRESETS["fast"],
    {
        "rollout": {"shift": 5.0, "guidance": 1.0, "image_guidance": 1.0},
        "evaluation": {"guidance": 7.5, "image_guidance": 5.0},
    },
)
PRESETS["tiny-phantom"] = merge(PRESETS["tiny"], {"policy": {"source": "tinyworld-phantom"}})
