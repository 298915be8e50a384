"""The GRPO objective: one class per policy loss, and the KL to the reference policy.

Every loss is one number per sample, so that the caller decides on weights and means.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .sde import Transition


@dataclass(frozen=True)
class PolicyLoss(ABC):
    """A clipped surrogate of the advantage.

    The ratio is clipped to 1 +- `clip_range`, advantages to +- `advantage_clip`.
    """

    clip_range: float
    advantage_clip: float

    needs_means = False
    """Whether `compute` needs the mean of the sampling policy's transition."""

    @abstractmethod
    def compute(
        self, now: Transition, old_log_prob: Tensor, advantages: Tensor, old_mean: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss float32 [B] and metrics, each [B] without gradient.

        `now`: the trained policy's transition at the sampled next latents. `old_log_prob` [B] and `old_mean` [B, ...]:
        of the policy that sampled. Metrics: `policy_loss`; `ratio`; `approx_kl` = log_ratio^2 / 2; `clipfrac` = 1
        where the ratio left 1 +- `clip_range`.
        """

    def _surrogate(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """max(-A r, -A clip(r, 1 - c, 1 + c)) with r = exp(log_ratio), float32 [B]."""
        ratio = torch.exp(log_ratio)
        gain = advantages.to(ratio).clamp(-self.advantage_clip, self.advantage_clip)
        clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        return torch.maximum(-gain * ratio, -gain * clipped)

    def _metrics(self, loss: Tensor, log_ratio: Tensor) -> dict[str, Tensor]:
        log_ratio = log_ratio.detach()
        ratio = torch.exp(log_ratio)
        clipped = (ratio - 1).abs() > self.clip_range
        return {
            "policy_loss": loss.detach(),
            "ratio": ratio,
            "approx_kl": 0.5 * log_ratio**2,
            "clipfrac": clipped.to(log_ratio.dtype),
        }


class ClippedLoss(PolicyLoss):
    """PPO's clipped surrogate with r = exp(log_prob - old_log_prob).

    Source: identity-grpo's training script (PPO, arXiv 1707.06347).
    """

    def compute(
        self, now: Transition, old_log_prob: Tensor, advantages: Tensor, old_mean: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratio = now.log_prob - old_log_prob
        loss = self._surrogate(log_ratio, advantages)
        return loss, self._metrics(loss, log_ratio)


class GuardLoss(PolicyLoss):
    """GRPO-Guard: a normalised log-ratio, and a loss divided by the step length (arXiv 2510.22319).

    With d = std sqrt(-dt), log r = (log_prob - old_log_prob + mean((mu - mu_old)^2) / (2 d^2)) d equals mean((mu -
    mu_old) noise): centred on 0 at every step, where the plain ratio leans below 1 by the squared term. It is exactly
    0 for an unchanged policy. Dividing the loss by -dt takes the step length out of d mean / d velocity, so that every
    step has the same weight: over 24 of 25 steps the coefficient varies 1.12 times instead of about 14 times.
    `clip_range` is about 2e-6 here. Defined for Flow-SDE transitions only.
    """

    needs_means = True

    def compute(
        self, now: Transition, old_log_prob: Tensor, advantages: Tensor, old_mean: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratio = self.log_ratio(now, old_log_prob, old_mean)
        step_length = (now.sqrt_neg_dt**2).flatten(1).squeeze(1)
        loss = self._surrogate(log_ratio, advantages) / step_length
        return loss, self._metrics(loss, log_ratio)

    @staticmethod
    def log_ratio(now: Transition, old_log_prob: Tensor, old_mean: Tensor) -> Tensor:
        """The normalised log-ratio, float32 [B]."""
        deviation = (now.std * now.sqrt_neg_dt).flatten(1)
        shift = ((now.mean - old_mean) ** 2).flatten(1) / (2 * deviation**2)
        return (now.log_prob - old_log_prob + shift.mean(1)) * deviation.squeeze(1)


LOSSES = {"plain": ClippedLoss, "guard": GuardLoss}
"""The loss of each `optim.ratio`."""


def kl_divergence(now: Transition, reference_mean: Tensor) -> Tensor:
    """KL [B] between two transitions of equal deviation, averaged per element.

    mean((mu - mu_ref)^2) / (2 (std sqrt(-dt))^2); `reference_mean`: [B, ...] of any rank, as `now.mean`.
    """
    deviation = now.std * now.sqrt_neg_dt
    return (((now.mean - reference_mean) ** 2) / (2 * deviation**2)).flatten(1).mean(1)
