"""The parts of the GRPO objective, each one number per sample so that the caller decides on weights and means."""

from __future__ import annotations

import torch
from torch import Tensor


def policy_loss(
    log_prob: Tensor, log_prob_old: Tensor, advantages: Tensor, clip_range: float, advantage_clip: float
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate max(-A r, -A clip(r, 1 - c, 1 + c)) and the ratio r, both float32 [B].

    r = exp(log_prob - log_prob_old); `advantages` [B] are clipped to +-`advantage_clip` first.
    Source: identity-grpo's training script (PPO, arXiv 1707.06347).
    """
    return _clipped(log_prob - log_prob_old, advantages, clip_range, advantage_clip)


def guard_log_ratio(
    log_prob: Tensor, log_prob_old: Tensor, mean: Tensor, mean_old: Tensor, std: Tensor, sqrt_neg_dt: Tensor
) -> Tensor:
    """GRPO-Guard's regulated log-ratio, float32 [B] (arXiv 2510.22319).

    log_prob, log_prob_old: [B]; mean, mean_old: [B, ...]; std, sqrt_neg_dt: [B, 1, ...], deviation d = std sqrt_neg_dt.
    (log_prob - log_prob_old + mean((mu - mu_old)^2) / (2 d^2)) d equals mean((mu - mu_old) noise): centred on 0 at
    every step, where the plain ratio leans below 1 by the squared term. It is exactly 0 for an unchanged policy.
    """
    deviation = (std * sqrt_neg_dt).flatten(1)
    shift = ((mean - mean_old) ** 2).flatten(1) / (2 * deviation**2)
    return (log_prob - log_prob_old + shift.mean(1)) * deviation.squeeze(1)


def guard_loss(
    log_ratio: Tensor, sqrt_neg_dt: Tensor, advantages: Tensor, clip_range: float, advantage_clip: float
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate of `guard_log_ratio` divided by -dt, and the ratio; both float32 [B].

    The division takes the step length out of d mean / d velocity, so that every step of the schedule pulls alike: over
    24 of 25 steps the coefficient varies 1.12 times instead of about 14 times. `clip_range` is about 2e-6 here.
    """
    loss, ratio = _clipped(log_ratio, advantages, clip_range, advantage_clip)
    return loss / (sqrt_neg_dt**2).flatten(1).squeeze(1), ratio


def kl_divergence(mean: Tensor, mean_ref: Tensor, std: Tensor, sqrt_neg_dt: Tensor) -> Tensor:
    """KL [B] between two transitions of equal deviation, averaged per element.

    mean((mu - mu_ref)^2) / (2 (std sqrt_neg_dt)^2); mean, mean_ref: [B, ...] of any rank; std, sqrt_neg_dt: [B, 1,
    ...].
    """
    return (((mean - mean_ref) ** 2) / (2 * (std * sqrt_neg_dt) ** 2)).flatten(1).mean(1)


def stats(log_ratio: Tensor, clip_range: float) -> dict[str, Tensor]:
    """What to watch of an update, each [B], without gradient.

    `approx_kl` = log_ratio^2 / 2; `clipfrac` = 1 where the ratio left 1 +- clip_range.
    """
    log_ratio = log_ratio.detach()
    clipped = (torch.exp(log_ratio) - 1).abs() > clip_range
    return {"approx_kl": 0.5 * log_ratio**2, "clipfrac": clipped.to(log_ratio.dtype)}


def _clipped(log_ratio: Tensor, advantages: Tensor, clip_range: float, advantage_clip: float) -> tuple[Tensor, Tensor]:
    ratio = torch.exp(log_ratio)
    gain = advantages.to(ratio).clamp(-advantage_clip, advantage_clip)
    return torch.maximum(-gain * ratio, -gain * ratio.clamp(1 - clip_range, 1 + clip_range)), ratio
