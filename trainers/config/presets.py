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
        # On 80 GB all activations of two videos fit, and two at a time are faster than four.
        "optim": {"micro_batch": 2},
        "evaluation": {"video": {"height": 480, "width": 832, "frames": 81}},
    },
    # One trained step per video, another in every group, by CPS: most gained per second of the GPU (row `fast` of the
    # first table of web/docs/learning.md). The learning rate moves the velocity per update as TinyWorld's does there.
    # 10 steps, as Flow-GRPO (arXiv 2505.05470) trains with: order among the videos of a group needs fewer than they do.
    # Measured at the training size: a held-out video of the published size costs as much as forty of training.
    "fast": {
        "negative_prompt": WAN_NEGATIVE_PROMPT,
        "policy": {"dtype": "bfloat16"},
        "reward": {"dtype": "bfloat16"},
        "rollout": {
            "steps": 10,
            "dynamics": "cps",
            "updates_per_iteration": 1,
            "window": {"kind": "random", "size": 1, "last": 7, "per": "group"},
        },
        "optim": {"learning_rate": 5e-5, "clip_range": 1e-5, "kl": 0.0, "micro_batch": 2},
        "ema": {"every": 1},
        "evaluation": {"steps": 30},
    },
    # `fast` under a distilled LoRA of 4 steps without guidance (policy.loras), so that the gain is there with the
    # sampler that people use. Of 4 steps the first three are trained.
    "distilled": {
        "negative_prompt": WAN_NEGATIVE_PROMPT,
        "policy": {"dtype": "bfloat16"},
        "reward": {"dtype": "bfloat16"},
        "rollout": {
            "steps": 4,
            "shift": 5.0,
            "guidance": 1.0,
            "dynamics": "cps",
            "updates_per_iteration": 1,
            "window": {"kind": "random", "size": 1, "last": 3, "per": "group"},
        },
        "optim": {"learning_rate": 5e-5, "clip_range": 1e-5, "kl": 0.0, "micro_batch": 2},
        "ema": {"every": 1},
        "evaluation": {"steps": 4},
    },
    # TinyWorld on two CPU cores, as `fast`.
    "tiny": {
        "iterations": 24,
        "reward": {"micro_batch": 4},
        "video": {"height": 48, "width": 80, "frames": 9},
        "rollout": {
            "steps": 8,
            "guidance": 1.0,
            "micro_batch": 32,
            "groups_per_update": 16,
            "dynamics": "cps",
            "updates_per_iteration": 1,
            "window": {"kind": "random", "size": 1, "last": 6, "per": "group"},
        },
        "optim": {"learning_rate": 1e-3, "clip_range": 1e-5, "micro_batch": 32},
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
PRESETS["distilled-phantom"] = merge(
    PRESETS["distilled"],
    # Without guidance of the text; the references are followed through the guidance that the LoRA has learned.
    {"rollout": {"image_guidance": 1.0}},
)
PRESETS["tiny-phantom"] = merge(PRESETS["tiny"], {"policy": {"source": "tinyworld-phantom"}})
