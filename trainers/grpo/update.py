"""The loss of one step of some rollouts: the only place where a gradient is made."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import TrainConfig
from ..lora.inject import lora_disabled
from ..policies.base import ConditionBatch, Policy
from .dynamics import Schedule
from .losses import guard_log_ratio, guard_loss, kl_divergence, policy_loss, stats
from .rollout import Trajectory, guidance_of, timestep_batch, transition


def step_losses(
    policy: Policy,
    batch: ConditionBatch,
    trajectory: Trajectory,
    step: int,
    advantages: Tensor,
    schedule: Schedule,
    config: TrainConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss [B] of the window's `step`-th transition for B rollouts on the policy's device, and what to watch, each [B].

    loss = clipped policy loss + kl * KL(policy || base), as the published trainer (golden/sde facts 7-8).
    """
    rollout, optim = config.rollout, config.optim
    index = trajectory.window[step]
    latents, next_latents = trajectory.latents[:, step], trajectory.latents[:, step + 1]
    timesteps, guidance = timestep_batch(schedule, index, len(latents)), guidance_of(rollout)
    velocity = policy.velocity(latents, timesteps, batch, guidance)
    now = transition(rollout, latents, velocity, schedule, index, next_latents=next_latents)
    old = trajectory.log_probs[:, step]
    if optim.ratio == "guard":
        log_ratio = guard_log_ratio(now.log_prob, old, now.mean, trajectory.means[:, step], now.std, now.sqrt_neg_dt)
        loss, ratio = guard_loss(log_ratio, now.sqrt_neg_dt, advantages, optim.clip_range, optim.advantage_clip)
    else:
        log_ratio = now.log_prob - old
        loss, ratio = policy_loss(now.log_prob, old, advantages, optim.clip_range, optim.advantage_clip)
    watched = {
        "policy_loss": loss.detach(),
        "ratio_error": (ratio.detach() - 1).abs(),
        **stats(log_ratio, optim.clip_range),
    }
    if optim.kl:
        with torch.no_grad(), lora_disabled(policy.transformer):
            base = transition(
                rollout,
                latents,
                policy.velocity(latents, timesteps, batch, guidance),
                schedule,
                index,
                next_latents=next_latents,
            )
        kl = kl_divergence(now.mean, base.mean, now.std, now.sqrt_neg_dt)
        loss = loss + optim.kl * kl
        watched["kl"] = kl.detach()
    return loss, watched
