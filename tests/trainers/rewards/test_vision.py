"""The vision tower's own order of work gives what transformers' gives."""

from __future__ import annotations

import torch

from trainers.rewards.identity import IdentityReward
from trainers.rewards.vision import batch_layout, vision_embeddings

GRIDS = [(2, 18, 30), (1, 6, 6), (2, 4, 10), (1, 6, 6), (1, 22, 2)]


def _rows(grids: list[tuple[int, int, int]]) -> torch.Tensor:
    return torch.randn(sum(t * h * w for t, h, w in grids), 1176, generator=torch.Generator().manual_seed(0))


def test_it_equals_transformers_tower_for_mixed_pictures(reward: IdentityReward) -> None:
    rows = _rows(GRIDS)
    with torch.no_grad():
        theirs = reward.model.visual(rows, torch.tensor(GRIDS))
        theirs = getattr(theirs, "pooler_output", theirs)
        ours = vision_embeddings(reward.model.visual, rows, GRIDS)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 2e-5


def test_a_picture_does_not_see_its_neighbours(reward: IdentityReward) -> None:
    rows = _rows(GRIDS)
    with torch.no_grad():
        together = vision_embeddings(reward.model.visual, rows, GRIDS)
        alone = vision_embeddings(reward.model.visual, rows[1080:1116], [GRIDS[1]])
    assert (together[270:279] - alone).abs().max() < 1e-5


def test_a_layout_that_was_first_needed_for_a_score_serves_a_training() -> None:
    """Scores are computed in inference mode, whose tensors cannot be saved for a backward pass."""
    with torch.inference_mode():
        layout = batch_layout(((1, 10, 14),), 3, torch.device("cpu"))
    assert not layout.to_windows.is_inference() and not layout.positions.is_inference()
