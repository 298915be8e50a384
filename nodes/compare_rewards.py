"""The node that shows what a newly trained reward judges differently."""

from __future__ import annotations

import comfy.utils
import numpy as np
from comfy_api.latest import io, ui

from ..trainers.errors import UserError
from ..trainers.preference.compare import Comparison, compare_rewards, comparison_board
from ..trainers.preference.folder import PairFolder
from ..trainers.preference.pairs import Scored, score_pairs
from ..trainers.preference.stored import Part, voted_pairs
from ..trainers.runs.folder import RunFolder
from . import folders
from .inputs import require_given, require_range
from .pictures import to_image
from .rewards import with_reward
from .types import LazyReward, RewardType

NAMES = ("old", "new")
PAIRS_SHOWN = (1, 50)


class CompareRewards(io.ComfyNode):
    """Two rewards on the pairs that the training of the new one held out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IdentityGRPOCompareRewards",
            display_name="Compare Rewards",
            category="Identity-GRPO/rewards",
            description="How often an old and a new reward agree with the votes on pairs that the new one was not "
            "trained on, and the clips of the pairs on which the two disagree.",
            search_aliases=["reward accuracy", "preference", "held out", "disagreement", "before after", "votes"],
            inputs=[
                RewardType.Input("old", tooltip="The reward to compare with, from Load Reward."),
                RewardType.Input(
                    "new", tooltip="A reward that Train Reward has made; its run says which pairs are held out."
                ),
                io.Int.Input(
                    "pairs_shown",
                    default=3,
                    min=PAIRS_SHOWN[0],
                    max=PAIRS_SHOWN[1],
                    tooltip="Pairs in the picture at most: those first that the votes decide, and on which the two "
                    "differ most.",
                ),
            ],
            outputs=[
                io.Image.Output("picture", tooltip="The pairs of which the two prefer different clips."),
                io.String.Output("result", tooltip="The numbers of both rewards as text."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, old: LazyReward, new: LazyReward, pairs_shown: int) -> io.NodeOutput:
        for name, reward in zip(NAMES, (old, new), strict=True):
            require_given(name, reward, LazyReward, "Load Reward")
        require_range("pairs_shown", pairs_shown, PAIRS_SHOWN)
        run = folders.reward_run(new.config.source)
        if run is None:
            raise UserError("`new` is no reward of Train Reward; choose `<run>: best` in its Load Reward")
        pairs = _held_out(run)
        bar = comfy.utils.ProgressBar(2 * len(pairs))
        scores = [_scores(reward, pairs, bar, place * len(pairs)) for place, reward in enumerate((old, new))]
        found = compare_rewards(*scores)
        board = to_image(np.asarray(comparison_board(found, pairs, NAMES, pairs_shown)))
        text = _text(found, len(pairs), run)
        return io.NodeOutput(board, text, ui=ui.PreviewImage(board, cls=cls).as_dict() | {"text": (text,)})


def _held_out(run: RunFolder) -> Part:
    """The pairs that the run did not train on. Raises UserError when there is none, or a file is missing."""
    settings = run.settings()
    if not settings.held_out:
        raise UserError(f"run {run.id} has held no pair out; train again with `held_out` above 0")
    return voted_pairs(PairFolder(settings.pairs), settings.pairs_bytes, settings.held_out).held_out


def _scores(lazy: LazyReward, pairs: Part, bar: comfy.utils.ProgressBar, done: int) -> Scored:
    # One clip at a time: the released reward needs gigabytes for each.
    return with_reward(lazy, lambda reward: score_pairs(reward, pairs, 1, 1, lambda n: bar.update_absolute(done + n)))


def _text(found: Comparison, pairs: int, run: RunFolder) -> str:
    decided = found.accuracies[0].decided
    lines = [f"{pairs} held-out pairs of {run.id}, {decided} of them decided by the votes"]
    if decided:
        shares = (f"{name} {part.without_ties:.0%}" for name, part in zip(NAMES, found.accuracies, strict=True))
        lines.append("agreement with the votes: " + ", ".join(shares))
    text = f"they prefer different clips of {len(found.places)} pairs"
    if not found.places:
        text = "they prefer the same clip of all pairs"
    elif found.decided:
        text += f"; the votes decide {found.decided} of them: old is right on {found.right[0]}, new on {found.right[1]}"
    return "\n".join([*lines, text])


NODES = [CompareRewards]
