"""What one video of an iteration costs at real size, from measured phases."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import PolicyKind, TrainConfig


@dataclass(frozen=True)
class Phases:
    """Seconds per video of 33 frames 240x416 with two references: one sampled and one trained step with guidance, the
    forward pass of the KL, decoding. `branches`: guidance branches that these steps have.
    """

    sampled: float
    trained: float
    kl: float
    decode: float
    branches: int


REAL_SIZE: dict[PolicyKind, Phases] = {
    "vace": Phases(0.0986, 0.365, 0.0986, 0.19, 2),
    "phantom": Phases(0.087, 0.33, 0.087, 0.19, 3),
}
"""1.3B in bfloat16 on one H100: compiled blocks, LoRA products in bfloat16, gradient checkpointing."""


def seconds_per_video(config: TrainConfig, kind: PolicyKind) -> float:
    """Seconds that one video of an iteration of this recipe costs at real size, scoring left out.

    A recipe without guidance computes one branch instead of all; TinyWorld's policies train without, and count as
    guided.
    """
    phases, rollout = REAL_SIZE[kind], config.rollout
    unguided = rollout.guidance == 1 and not config.preset.startswith("tiny")
    share = 1 / phases.branches if unguided else 1.0
    trained = phases.trained + (phases.kl if config.optim.kl else 0.0)
    return share * (rollout.steps * phases.sampled + rollout.window.size * trained) + phases.decode
