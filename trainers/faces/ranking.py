"""Which clips of the same people are right, and their order by the face report, a reward, or both."""

from __future__ import annotations

from collections.abc import Sequence

from .report import FaceReport

WRONG = {"swap", "missing", "duplicate", "stranger"}  # alarms with which a clip is not right


def is_right(report: FaceReport, least: float) -> bool:
    """Whether the right people are in the clip: a headline of at least `least`, and none of the alarms WRONG."""
    wrong = WRONG & {alarm.kind for alarm in report.alarms}
    return report.headline is not None and report.headline >= least and not wrong


def best_first(headlines: Sequence[float | None] | None, rewards: Sequence[float] | None) -> list[int]:
    """Indices of clips, best first, by the headlines of their face reports, by their rewards, or by the mean of ranks.

    Either may be None, not both. A clip whose faces cannot be judged comes after those that can. Equal clips keep their
    order; where both ranks together are equal, the face report decides.
    """
    faces = headlines and [-1.0 if headline is None else headline for headline in headlines]
    ranks = [_ranks(values) for values in (faces, rewards) if values]
    sums = [sum(of) for of in zip(*ranks, strict=True)]
    return sorted(range(len(sums)), key=lambda index: (sums[index], -(faces or sums)[index]))


def _ranks(values: Sequence[float]) -> list[float]:
    """0 for the highest; equal values share the mean of their ranks."""
    return [
        sum(other > value for other in values) + (sum(other == value for other in values) - 1) / 2 for value in values
    ]
