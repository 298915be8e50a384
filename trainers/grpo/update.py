"""The policy update: gradients of one update's rollouts, and the optimiser step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..config import TrainConfig
from ..diffusion.schedule import Schedule
from ..errors import UserError
from ..lora.inject import lora_disabled, lora_parameters
from ..policies.base import ConditionBatch, Policy
from ..policies.fp8 import fast_products
from .compiled_check import CompiledCheck
from .ema import Ema
from .losses import LOSSES, kl_divergence
from .ranks import Ranks
from .rollout import RolloutBatch, training_guidance
from .sde import DYNAMICS

METRICS = ("policy_loss", "ratio_error")
OFF_POLICY_METRICS = ("approx_kl", "clipfrac")
"""What the earlier updates of an iteration have changed: 0 where the policy is the one that sampled."""
KL_METRICS = ("kl", "velocity_change")
"""Measured where the base policy is evaluated anyway; `velocity_change` is |v - v_base| / |v_base|."""


class PolicyUpdate:
    """The trained LoRA of a policy with its optimiser and its moving average.

    `compiled_check`: of the gradients of compiled blocks, before the first is used.
    """

    def __init__(
        self,
        policy: Policy,
        config: TrainConfig,
        schedule: Schedule,
        ranks: Ranks,
        compiled_check: CompiledCheck | None = None,
    ) -> None:
        self.policy, self.config, self.schedule, self.ranks = policy, config, schedule, ranks
        self.compiled_check = compiled_check
        optim = config.optim
        self.parameters = lora_parameters(policy.transformer)
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), optim.learning_rate, optim.betas, optim.epsilon, optim.weight_decay
        )
        self.ema = Ema(self.parameters, config.ema.decay, config.ema.every)
        self.loss = LOSSES[optim.ratio](optim.clip_range, optim.advantage_clip)

    def accumulate(
        self,
        batches: Sequence[RolloutBatch],
        advantages: Tensor,
        terms: int,
        check: Callable[[], None],
        report: Callable[[float], None],
        on_policy: bool = False,
    ) -> dict[str, float]:
        """Add the gradients of this process's rollouts of one update; returns the sums of the metrics.

        `advantages` [n]: of the whole iteration, by place in the plan. `on_policy`: nothing was updated since the
        rollouts (see `step_losses`). `terms`: rollouts times window steps of the
        update over all processes, so that the sum of gradients is that of the mean loss. `check` is called before
        every step, `report` gets the fraction that is done.
        """
        size, sums = self.config.optim.micro_batch, {}
        done, total = 0, sum(map(len, batches))
        for batch in batches:
            for start in range(0, len(batch), size):
                part = batch[start : start + size]
                self._backward(part, advantages[part.plan_indices], terms, on_policy, check, sums)
            done += len(batch)
            report(done / total)
        return {name: value.item() for name, value in sums.items()}

    def set_progress(self, done: float) -> None:
        """Set the learning rate for the fraction `done` of the run's iterations."""
        optim = self.config.optim
        rate = optim.learning_rate * (1 - done if optim.schedule == "linear" else 1)
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def step(self, number: int) -> float:
        """Sum the gradients of all processes, clip and apply them; returns their norm before clipping.

        `number`: of this optimiser step, counted from 1. Raises UserError when the norm is not finite; nothing is
        changed then.
        """
        self.ranks.sum_gradients(self.parameters.values())
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.config.optim.max_grad_norm).item()
        if not math.isfinite(norm):
            raise UserError(
                f"the gradient of update {number} is {norm}; the run stops before it spoils the weights. Lower "
                "optim.learning_rate or set policy.dtype to float32, then resume from the last checkpoint"
            )
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.ema.step(number)
        return norm

    def _backward(
        self,
        batch: RolloutBatch,
        advantages: Tensor,
        terms: int,
        on_policy: bool,
        check: Callable[[], None],
        sums: dict[str, Tensor],
    ) -> None:
        """Add the gradients of all window steps of some rollouts, and their metrics to `sums`."""
        if not self.config.optim.kl and not advantages.any():
            return
        device = self.policy.device
        conditions = self.policy.batch(batch.conditions)
        batch, advantages = batch.to(device), advantages.to(device, torch.float32)
        if self.compiled_check is not None:
            self._check_compiled(
                lambda: self.step_losses(conditions, batch, 0, advantages, on_policy)[0].sum().backward()
            )
        for step in range(batch.trained_steps):
            check()
            losses, metrics = self.step_losses(conditions, batch, step, advantages, on_policy)
            (losses.sum() / terms).backward()
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0) + value.sum()

    def _check_compiled(self, backward: Callable[[], None]) -> None:
        """Check the gradient that `backward` adds, unless there is one to add it to."""
        parameters = list(self.parameters.values())
        if all(parameter.grad is None for parameter in parameters) and self.compiled_check(parameters, backward):
            self.compiled_check = None

    def step_losses(
        self, conditions: ConditionBatch, batch: RolloutBatch, step: int, advantages: Tensor, on_policy: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss [B] of the window's `step`-th transition for rollouts on the policy's device, and metrics, each [B].

        loss = clipped policy loss + kl * KL(policy || base policy), as the published trainer
        (tests/golden/sde/README.md, points 7 and 8). `on_policy`: the policy is the one that sampled. Its probability
        now is taken for the one then, so that the ratio is 1 in any precision: half precision and other batches move it
        by about as much as the clip allows. `ratio_error` still measures by how much.
        """
        rollout, kl_weight = self.config.rollout, self.config.optim.kl
        index, stochastic_step = batch.steps[:, step], DYNAMICS[rollout.dynamics]
        latents, next_latents = batch.transition(step)
        timesteps = self.schedule.timesteps[index]
        guidance = training_guidance(rollout)
        velocity = self.policy.velocity(latents, timesteps, conditions, guidance)
        now = stochastic_step(latents, velocity, self.schedule, index, next_latents=next_latents)
        old_mean = None if batch.means is None else batch.means[:, step]
        old_log_prob = batch.log_probs[:, step]
        drift = (now.log_prob.detach() - old_log_prob).expm1().abs()
        if on_policy:
            old_log_prob, old_mean = now.log_prob.detach(), None if old_mean is None else now.mean.detach()
        loss, metrics = self.loss.compute(now, old_log_prob, advantages, old_mean)
        del metrics["ratio"]
        metrics["ratio_error"] = drift
        if kl_weight:
            transformer = self.policy.transformer
            with torch.no_grad(), lora_disabled(transformer), fast_products(transformer):
                base_velocity = self.policy.velocity(latents, timesteps, conditions, guidance)
                base = stochastic_step(latents, base_velocity, self.schedule, index, next_latents=next_latents)
            kl = kl_divergence(now, base.mean)
            loss = loss + kl_weight * kl
            metrics["kl"] = kl.detach()
            change = (velocity.detach() - base_velocity).flatten(1).norm(dim=1)
            metrics["velocity_change"] = change / base_velocity.flatten(1).norm(dim=1)
        return loss, metrics
