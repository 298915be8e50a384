"""Which face of a frame is which person: one to one, at the least total distance, or nobody."""

from __future__ import annotations

import torch
from torch import Tensor

from .calibration import OTHER

NOBODY = -1


def assign(frame: Tensor, references: Tensor) -> Tensor:
    """The person of each face of one frame, int64 [n]: an index of `references`, or NOBODY.

    `frame`: embeddings [n, 128]; `references`: embeddings [people, 128]. No person is given twice, and none to a face
    as far from it as other people are (OTHER).
    """
    distances = torch.cdist(frame.double(), references.double())
    nobody = torch.full((len(frame), len(frame)), OTHER, dtype=torch.float64)
    columns = torch.tensor(_cheapest(torch.cat([distances, nobody], 1).tolist()), dtype=torch.int64)
    return torch.where(columns < len(references), columns, NOBODY)


def _cheapest(costs: list[list[float]]) -> list[int]:
    """A column for each row, no column twice, at the least total cost; needs at least as many columns as rows.

    The Hungarian method by shortest augmenting paths with potentials, O(rows² · columns).
    """
    rows, columns = len(costs), len(costs[0]) if costs else 0
    row_price, column_price = [0.0] * (rows + 1), [0.0] * (columns + 1)
    owner = [0] * (columns + 1)  # the row that has each column; rows and columns count from 1, 0 is none
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        best, before = [float("inf")] * (columns + 1), [0] * (columns + 1)
        reached = [False] * (columns + 1)
        while owner[column]:
            reached[column] = True
            here, step, following = owner[column], float("inf"), 0
            for c in range(1, columns + 1):
                if reached[c]:
                    continue
                reduced = costs[here - 1][c - 1] - row_price[here] - column_price[c]
                if reduced < best[c]:
                    best[c], before[c] = reduced, column
                if best[c] < step:
                    step, following = best[c], c
            for c in range(columns + 1):
                if reached[c]:
                    row_price[owner[c]] += step
                    column_price[c] -= step
                else:
                    best[c] -= step
            column = following
        while column:
            owner[column], column = owner[before[column]], before[column]
    chosen = [0] * rows
    for column in range(1, columns + 1):
        if owner[column]:
            chosen[owner[column] - 1] = column - 1
    return chosen
