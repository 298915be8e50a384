"""The published recipe for pairs of two sources: a teacher learns from people's votes, filters the automatic pairs by
them, and the reward learns from both, automatic ones first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..ranks import Ranks
from ..rewards.identity import IdentityReward, preference_probabilities
from .batches import CosineMix
from .loss import A_BETTER, B_BETTER, TIE
from .pairs import Pair, score_pairs
from .recipe import RewardTraining
from .stored import Part
from .train import OnEvent, Trained, train_reward

TEACHER = "teacher"


@dataclass(frozen=True)
class TwoStages:
    """Result: the teacher's training, how many automatic pairs it kept of how many, and the reward's training."""

    teacher: Trained | None
    kept: int
    automatic: int
    reward: Trained


def agreeing(reward: IdentityReward, pairs: Sequence[Pair], theta: float = 5.0) -> list[int]:
    """Places of the valid pairs whose label is the likeliest one by this reward."""
    scored = score_pairs(reward, pairs)
    if len(scored.labels) != len(pairs):
        raise ValueError("pairs without a verdict cannot be filtered")
    likeliest = torch.stack(preference_probabilities(scored.reward_a, scored.reward_b, theta)).argmax(0)
    predicted = torch.tensor([A_BETTER, TIE, B_BETTER])[likeliest]
    return (predicted == scored.labels).nonzero().flatten().tolist()


def train_in_two_stages(
    base_model: Path,
    voted: Sequence[Pair],
    automatic: Sequence[Pair],
    output: Path,
    training: Callable[[int], RewardTraining],
    device: torch.device | str,
    held_out: Sequence[Pair] = (),
    on_event: OnEvent | None = None,
    ranks: Ranks | None = None,
    **options: Any,
) -> TwoStages:
    """Train a teacher on `voted` in `output/teacher`, then a reward on both kinds in `output`.

    `training`: the settings for a number of pairs. A teacher that is there already is used again. `ranks` and `options`
    are `train_reward`'s. Raises UserError when the teacher agrees with no automatic pair.
    """
    taught, ranks = None, ranks or Ranks()
    options |= {"ranks": ranks}
    if not list((output / TEACHER).glob("checkpoint-*")):
        settings = replace(training(len(voted)), pickled=False)
        taught = train_reward(base_model, voted, output / TEACHER, settings, device, held_out, on_event, **options)
        options = options | {"resume": False}
    dtype = torch.bfloat16 if training(1).frozen == torch.bfloat16 else torch.float32
    teacher = IdentityReward.load(output / TEACHER, base_model, dtype, device)
    kept = Part(automatic, _agreeing_together(teacher, automatic, ranks))
    del teacher
    if not len(kept):
        raise UserError(f"the teacher agrees with none of the {len(automatic)} automatic pairs; leave them out")
    settings = training(len(kept) + len(voted))
    mix = CosineMix(kept, voted, settings.batch_size, settings.steps, settings.seed)
    made = train_reward(base_model, mix, output, settings, device, held_out, on_event, **options)
    return TwoStages(taught, len(kept), len(automatic), made)


def _agreeing_together(teacher: IdentityReward, automatic: Sequence[Pair], ranks: Ranks) -> list[int]:
    """`agreeing`, each process on a part of the pairs."""
    own = ranks.slice([1] * len(automatic))
    return ranks.gather_results(lambda: [own[place] for place in agreeing(teacher, Part(automatic, own))])
