"""The published trainer (alibaba/identity-grpo) from a checkout: its own sampling and its own trained step.

Its transformer is as `train_wan2_1_vace.py` sets it up: float32 weights under bfloat16 autocast, a LoRA of rank 32 by
PEFT, gradient checkpointing. Sampling is its pipeline, the stochastic step of both its own; that script cannot be
imported without everything it uses, so its passes (text, then no text, then both without the LoRA) are made here.
"""

from __future__ import annotations

import contextlib
import sys
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, autocast

from ...config import PolicyKind, TrainConfig
from ...errors import UserError
from ..iteration import PHASES
from ..measure import Clock, Phase, timed_steps
from ..sizes import Size
from .plain_diffusers import STEPS, PlainDiffusers

SAMPLER = "flow_grpo.diffusers_patch.wan_vace_pipeline_with_logprob"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
RANK = 32


class Published:
    """The checkout in `folder` at work. It trains VACE only, and samples one video at a time."""

    def __init__(
        self, folder: Path, size: Size, kind: PolicyKind, config: TrainConfig, references: int, device: torch.device
    ) -> None:
        self.folder, self.kind, self.config, self.device = folder, kind, config, device
        policy = config.policy.model_copy(update={"dtype": "float32"})
        self._plain = PlainDiffusers(size, kind, config.model_copy(update={"policy": policy}), references, device)

    def phases(self) -> list[Phase]:
        made = partial(Phase, per="video", dtype=torch.bfloat16)
        batch = self.config.optim.micro_batch
        return [
            made("published: sample step", units=STEPS, run=self._sample, ours=PHASES["sde"]),
            made("published: trained step", units=batch, run=self._train, ours=PHASES["train"]),
        ]

    @cached_property
    def pipeline(self):
        from accelerate.utils import convert_outputs_to_fp32

        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise UserError(f"the published trainer needs peft, which is not installed: {error}") from error

        pipeline = self._plain.pipeline
        pipeline.vae.requires_grad_(False)
        lora = LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS)
        model = pipeline.transformer = get_peft_model(pipeline.transformer, lora)
        model.enable_gradient_checkpointing()
        # What accelerate's `prepare` makes of a model at mixed_precision bf16.
        model.forward = convert_outputs_to_fp32(autocast(self.device.type, torch.bfloat16)(model.forward))
        pipeline.progress_bar = lambda total=None, iterable=None: self._bar
        return pipeline

    def _sample(self, clock: Clock) -> None:
        sample = self._sampler.wan_pipeline_with_logprob
        self.pipeline.transformer.eval()
        with timed_steps(clock, STEPS) as step, torch.no_grad():
            self._bar.update = step
            sample(self.pipeline, **self._plain.inputs, num_inference_steps=STEPS + 1, return_dict=False)

    def _train(self, clock: Clock) -> None:
        rollouts, model, kl = self._rollouts, self.pipeline.transformer.train(), self.config.optim.kl
        model.zero_grad()
        clock.start()
        now, mean, std = self._density(rollouts)
        loss = -(now - rollouts["log_probs"]).exp().mean()
        if kl:
            with torch.no_grad(), model.disable_adapter():
                _, base, _ = self._density(rollouts)
            loss = loss + kl * ((mean - base).square() / (2 * std**2)).mean()
        loss.backward()
        clock.stop()

    def _density(self, rollouts: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability [B] of the rollouts' step, mean and standard deviation of its Gaussian."""
        scale, model = self.config.rollout.guidance, self.pipeline.transformer
        velocities = [
            model(
                hidden_states=rollouts["latents"],
                timestep=rollouts["timesteps"],
                encoder_hidden_states=rollouts[text],
                control_hidden_states=rollouts["control"],
                control_hidden_states_scale=rollouts["latents"].new_ones(len(model.config.vace_layers)),
                return_dict=False,
            )[0]
            for text in ("prompt_embeds", "negative_prompt_embeds")[: 1 + (scale > 1)]
        ]
        velocity = velocities[-1] + scale * (velocities[0] - velocities[-1])
        return self._sampler.sde_step_with_logprob(
            self.pipeline.scheduler,
            velocity,
            rollouts["timesteps"],
            rollouts["latents"],
            prev_sample=rollouts["next_latents"],
        )[1:]

    @cached_property
    def _rollouts(self) -> dict[str, Tensor]:
        """What its training keeps of a micro-batch: two states and a density, of one sampled video repeated."""
        self._bar.update = lambda: None
        self.pipeline.transformer.eval()
        with torch.no_grad():
            _, states, densities, _, control = self._sampler.wan_pipeline_with_logprob(
                self.pipeline, **self._plain.inputs, num_inference_steps=2, return_dict=False
            )
        one = {
            "latents": states[0],
            "next_latents": states[1],
            "log_probs": densities[0],
            "timesteps": self.pipeline.scheduler.timesteps[:1],
            "control": control,
            **{name: self._plain.inputs[name] for name in ("prompt_embeds", "negative_prompt_embeds")},
        }
        return {name: value.repeat_interleave(self.config.optim.micro_batch, 0) for name, value in one.items()}

    @cached_property
    def _bar(self) -> Any:
        """In the place of the pipeline's progress bar, which it moves once a step."""

        class Bar(contextlib.nullcontext):
            def __enter__(self) -> Any:
                return self

        return Bar()

    @cached_property
    def _sampler(self) -> ModuleType:
        """Its module of the pipeline and the stochastic step. Raises UserError when it cannot be imported."""
        if self.kind != "vace":
            raise UserError("the published code has no Phantom trainer")
        if not (self.folder / "flow_grpo").is_dir():
            raise UserError(f"{self.folder} has no folder flow_grpo; give a checkout of alibaba/identity-grpo")
        sys.path.insert(0, str(self.folder))
        try:
            return import_module(SAMPLER)
        except ImportError as error:
            raise UserError(f"{SAMPLER} cannot be imported from {self.folder}: {error}") from error
        finally:
            sys.path.remove(str(self.folder))
