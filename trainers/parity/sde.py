"""Recompute a golden case of stochastic steps, losses and advantages."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..diffusion.schedule import Schedule, flow_schedule
from ..diffusion.solvers import ode_step
from ..grpo.advantages import group_advantages
from ..grpo.losses import ClippedLoss, kl_divergence
from ..grpo.sde import sde_step
from .checks import Check, compare


def verify_case(path: Path) -> list[Check]:
    """Checks of every expected quantity; tolerances are those of the case's README."""
    meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    sigmas, steps, losses = (load_file(path / f"{name}.safetensors") for name in ("sigmas", "steps", "losses"))
    schedules = {_family(c["key"]): flow_schedule(c["num_inference_steps"], c["flow_shift"]) for c in meta["cases"]}
    results = []
    for family in sorted({_family(key) for key in sigmas}):
        schedule = schedules.get(family) or flow_schedule(
            len(sigmas[f"{family}.timesteps"]), float(family.removeprefix("shift"))
        )
        results += [
            compare(f"{family}.sigmas", schedule.sigmas, sigmas[f"{family}.sigmas"], 1e-5),
            compare(f"{family}.timesteps", schedule.timesteps, sigmas[f"{family}.timesteps"], kind="exact"),
        ]
    for case in meta["cases"]:
        key = case["key"]
        step, loss = (_of_case(tensors, key) for tensors in (steps, losses))
        index = torch.tensor(case["step_index"])
        results += [
            Check(f"{key}.{r.name}", r.error, r.tolerance, r.kind, r.relative)
            for r in [
                *_steps(step, schedules[_family(key)], index),
                *_losses(step, loss, schedules[_family(key)], index, meta),
            ]
        ]
    for case in json.loads((path / "advantages.json").read_text(encoding="utf-8")):
        results += _advantages(case)
    return results


def _steps(given: dict[str, Tensor], schedule: Schedule, index: Tensor) -> list[Check]:
    latents, velocity = given["sample"], given["model_output"]
    sampled = sde_step(latents, velocity, schedule, index, noise=given["variance_noise"])
    evaluated = sde_step(latents, velocity, schedule, index, next_latents=given["prev_sample"])
    ode = ode_step(latents, velocity, schedule, index)
    return [
        compare("prev_sample", sampled.next_latents, given["prev_sample"], 1e-5),
        compare("prev_sample_mean", evaluated.mean, given["prev_sample_mean"], 1e-5),
        compare("std_dev_t", evaluated.std, given["std_dev_t"], 1e-5),
        compare("sqrt_neg_dt", evaluated.sqrt_neg_dt, given["sqrt_neg_dt"], 1e-5),
        compare("log_prob", evaluated.log_prob, given["log_prob"], 1e-5),
        compare("ode_next_sample", ode, given["ode_next_sample"], 1e-5),
        compare(
            "ode_log_prob",
            sde_step(latents, velocity, schedule, index, next_latents=ode).log_prob,
            given["ode_log_prob"],
            1e-5,
        ),
    ]


def _losses(
    step: dict[str, Tensor], given: dict[str, Tensor], schedule: Schedule, index: Tensor, meta: dict
) -> list[Check]:
    velocity = step["model_output"].clone().requires_grad_(True)
    now = sde_step(step["sample"], velocity, schedule, index, next_latents=step["prev_sample"])
    base = sde_step(step["sample"], step["model_output_ref"], schedule, index, next_latents=step["prev_sample"])
    objective = ClippedLoss(meta["clip_range"], meta["adv_clip_max"])
    per_sample, metrics = objective.compute(now, given["log_prob_old"], given["advantages"])
    policy, kl = per_sample.mean(), kl_divergence(now, base.mean).mean()
    loss = policy + meta["beta"] * kl
    loss.backward()
    return [
        compare("mean_ref", base.mean, given["mean_ref"], 1e-5),
        compare("ratio", metrics["ratio"], given["ratio"], 2e-6),
        compare("policy_loss", policy, given["policy_loss"], 2e-6),
        compare("kl_loss", kl, given["kl_loss"], 1e-4, "relative"),
        compare("loss", loss, given["loss"], 2e-6 + meta["beta"] * 1e-4 * abs(float(given["kl_loss"]))),
        compare("approx_kl", metrics["approx_kl"].mean(), given["approx_kl"], 1e-5),
        compare("clipfrac", metrics["clipfrac"].mean(), given["clipfrac"], 1e-5),
        compare("grad_model_output", velocity.grad, given["grad_model_output"], 1e-4, "relative"),
    ]


def _advantages(case: dict) -> list[Check]:
    """Rewards are [N], or [N, steps] with separate statistics for every step."""
    rewards = torch.tensor(case["rewards"], dtype=torch.float64)
    results = []
    for name, global_std in (("false", False), ("true", True)):
        columns = [
            group_advantages(column, case["prompts"], global_std)
            for column in rewards.reshape(len(rewards), -1).unbind(1)
        ]
        found = torch.stack(columns, 1).view(rewards.shape)
        results.append(
            compare(f"advantages.{case['name']}.global_std_{name}", found, case[f"advantages_global_std_{name}"], 1e-9)
        )
    return results


def _family(key: str) -> str:
    """The part of a key before its step: `shift3` of `shift3.step05`."""
    return key.rpartition(".")[0]


def _of_case(tensors: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{key}."): value for name, value in tensors.items() if name.startswith(f"{key}.")}
