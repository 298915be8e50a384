"""Bradley-Terry with ties as a training loss."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

A_BETTER, B_BETTER, TIE, INVALID = 1, -1, 0, 22
"""Labels of a pair, as the reference writes them."""


def btt_loss(reward_a: Tensor, reward_b: Tensor, labels: Tensor, theta: float = 5.0) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the labels: (mean, per pair [N]), float32.

    Rewards are [N] or [N, 1], labels int64 likewise, best on the CPU: checking them on a GPU waits for it. With d =
    better - worse, a decided pair costs -logsigmoid(d - log theta); a tie adds the same of -d, less log(theta² - 1).
    Invalid pairs cost 0 yet count in the mean, as in KwaiVGI/VideoAlign `trainer.py`. Raises ValueError for an
    unknown label, or a theta outside 1..10^6.
    """
    if not 1 < theta <= 1e6:
        raise ValueError(f"theta must lie between 1 and a million for ties to have a probability, got {theta}")
    labels = labels.flatten()
    known = (labels.abs() <= 1) | (labels == INVALID)
    if not bool(known.all()):
        raise ValueError(f"unknown label {labels[~known][0].item()}: use 1 (A), -1 (B), 0 (tie) or 22 (invalid)")
    difference = reward_a.flatten().float() - reward_b.flatten().float()
    labels = labels.to(difference.device)
    margin = math.log(theta)
    win_a, win_b = F.logsigmoid(difference - margin), F.logsigmoid(-difference - margin)
    log_likelihood = torch.where(labels == TIE, win_a + win_b + math.log(theta**2 - 1), torch.zeros_like(difference))
    log_likelihood = torch.where(labels == A_BETTER, win_a, log_likelihood)
    log_likelihood = torch.where(labels == B_BETTER, win_b, log_likelihood)
    per_pair = -log_likelihood
    return per_pair.mean(), per_pair
