"""What one video, and an iteration, cost at real size, from measured phases."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import PolicyKind, TrainConfig
from ..memory.plan import PlanName, Workload


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
    "vace": Phases(0.0988, 0.264, 0.0988, 0.327, 2),
    "phantom": Phases(0.097, 0.247, 0.097, 0.327, 3),
}
"""1.3B in bfloat16 on one H100: compiled blocks, LoRA products in bfloat16, no activations recomputed."""


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


MEASURED_TOKENS = 4290  # of the video of `REAL_SIZE`
PARAMETERS: dict[PolicyKind, float] = {"vace": 2.154e9, "phantom": 1.419e9}
"""Of the transformers of `REAL_SIZE`."""
COPY_RATE = 25e9
"""Bytes a second from pinned host memory over PCIe 4 with 16 lanes."""


def seconds_per_iteration(work: Workload, plan: PlanName) -> float:
    """Seconds of an iteration on one H100 for each process, evaluation and scoring left out.

    `seconds_per_video`, in proportion to tokens and parameters, and the copies of a memory plan: beside the computation
    for swapped and sharded blocks, between the phases for whole models. Blocks are gathered at the rate of PCIe, too;
    NVLink has several times that.
    """
    rollout, kind = work.config.rollout, work.sizes.kind
    videos = rollout.groups * rollout.group_size / work.processes
    share = work.tokens() / MEASURED_TOKENS * work.sizes.transformer / work.sizes.item / PARAMETERS[kind]
    computing, copying = videos * share * seconds_per_video(work.config, kind), work.copied(plan) / COPY_RATE
    return max(computing, copying) if plan in ("sharded", "block_swap") else computing + copying
