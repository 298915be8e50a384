"""Two rewards on the same pairs: how often each agrees with the votes, and which clips they prefer differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from ..pictures.disagreements import Disagreement, disagreement_board
from .loss import TIE
from .pairs import Accuracy, Pair, Scored, agreement


@dataclass(frozen=True)
class Comparison:
    """Of two rewards on N pairs: each one's agreement with the labels and its margins, the score of A less that of B.

    `places`: the pairs of which they prefer different clips, those first that the votes decide, and the largest
    difference of the margins first. `decided`: how many of them the votes decide; `right`: on how many of these each
    reward agrees with the votes.
    """

    accuracies: tuple[Accuracy, Accuracy]
    margins: tuple[list[float], list[float]]
    places: list[int]
    decided: int
    right: tuple[int, int]


def compare_rewards(old: Scored, new: Scored) -> Comparison:
    """Compare two rewards by their scores of the same pairs, none of them invalid."""
    labels = old.labels.tolist()
    margins = tuple((scored.reward_a - scored.reward_b).tolist() for scored in (old, new))
    places = [i for i, (a, b) in enumerate(zip(*margins, strict=True)) if (a > 0) != (b > 0)]
    places.sort(key=lambda i: (labels[i] == TIE, -abs(margins[0][i] - margins[1][i])))
    decided = [i for i in places if labels[i] != TIE]
    right = tuple(sum((margin[i] > 0) == (labels[i] > 0) for i in decided) for margin in margins)
    return Comparison((agreement(old), agreement(new)), margins, places, len(decided), right)


def comparison_board(found: Comparison, pairs: Sequence[Pair], names: tuple[str, str], most: int) -> Image.Image:
    """A picture of the pairs of which they prefer different clips, at most `most`. `pairs`: those that were scored."""
    shown = []
    for i in found.places[:most]:
        pair, margins = pairs[i], (found.margins[0][i], found.margins[1][i])
        shown.append(Disagreement(pair.references, (pair.video_a, pair.video_b), margins, pair.label, pair.kind))
    if not shown:
        return disagreement_board(
            [], names, f"{names[0]} and {names[1]} prefer the same clip of all {len(pairs)} pairs"
        )
    count = f"{len(found.places)} of {len(pairs)} pairs"
    if len(shown) < len(found.places):
        count += f" (the first {len(shown)} are shown)"
    head = f"{names[0]} and {names[1]} prefer different clips of {count}. Positive: prefers A."
    return disagreement_board(shown, names, head)
