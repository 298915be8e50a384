"""What the phases add up to: the seconds of one iteration for each of its videos."""

from __future__ import annotations

from collections.abc import Mapping

from ..config import TrainConfig

PHASES = {
    "text": "encode text",
    "references": "encode references",
    "ode": "sample step (ODE)",
    "sde": "sample step (SDE)",
    "decode": "decode",
    "score": "score",
    "train": "trained step",
    "optimiser": "optimiser",
    "checkpoint": "checkpoint",
    "evaluate": "evaluation step",
    "evaluate-decode": "evaluation decode",
}
"""What `--phases` calls them, and their names in the table."""


def repetitions(config: TrainConfig) -> dict[str, float]:
    """How often one video of an iteration goes through each phase, by the keys of PHASES.

    What is done for a prompt item, an update, a checkpoint or an evaluation counts by the videos that share it. Every
    item is new; the scores of held-out videos count as those of rollouts.
    """
    rollout, evaluation = config.rollout, config.evaluation
    update = rollout.groups_per_update * rollout.group_size
    iteration = update * rollout.updates_per_iteration
    held_out = evaluation.items / (evaluation.every * iteration)
    return {
        "text": 1 / rollout.group_size,
        "references": 1 / rollout.group_size,
        "ode": rollout.steps - rollout.window.size,
        "sde": rollout.window.size,
        "decode": 1,
        "score": 1 + held_out,
        "train": rollout.window.size,
        "optimiser": 1 / update,
        "checkpoint": 1 / (iteration * config.checkpoint.every),
        "evaluate": held_out * evaluation.steps,
        "evaluate-decode": held_out,
    }


def seconds_per_video(config: TrainConfig, seconds: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
    """Seconds of one video of an iteration by phase, and the phases whose seconds are not known.

    `seconds`: of one unit of each phase. Phases that the recipe does not use are left out.
    """
    used = {name: times for name, times in repetitions(config).items() if times}
    parts = {name: times * seconds[name] for name, times in used.items() if name in seconds}
    return parts, [name for name in used if name not in seconds]
