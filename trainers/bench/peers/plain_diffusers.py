"""diffusers' own pipelines with random weights, eager, one video at a time, as their users run them."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from PIL import Image

from ...config import PolicyKind, TrainConfig
from ..iteration import PHASES
from ..measure import Clock, Phase, timed_steps
from ..models import random_transformer, random_vae
from ..sizes import Size

STEPS = 3
"""Steps that are timed of one video."""
TEXT_TOKENS = 512


class PlainDiffusers:
    """A WanVACEPipeline. For Phantom, of which diffusers has none, the text-to-video pipeline with as many more latent
    frames as there are references, in two guidance branches.
    """

    def __init__(self, size: Size, kind: PolicyKind, config: TrainConfig, references: int, device: torch.device):
        self.size, self.kind, self.config, self.references, self.device = size, kind, config, references, device

    def phases(self) -> list[Phase]:
        dtype = getattr(torch, self.config.policy.dtype)
        step = Phase("diffusers: sample step", "video", STEPS, dtype, self._sample, ours=PHASES["ode"])
        decode = Phase("diffusers: decode", "video", 1, torch.float32, self._decode, ours=PHASES["decode"])
        return [step, decode]

    @cached_property
    def pipeline(self):
        from diffusers import UniPCMultistepScheduler, WanPipeline, WanVACEPipeline

        dtype = getattr(torch, self.config.policy.dtype)
        pipeline = (WanVACEPipeline if self.kind == "vace" else WanPipeline)(
            tokenizer=None,
            text_encoder=None,
            vae=random_vae(self.size, self.device),
            transformer=random_transformer(self.size, self.kind, dtype, self.device),
            scheduler=UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=self.config.rollout.shift
            ),
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _sample(self, clock: Clock) -> None:
        with timed_steps(clock, STEPS) as step:

            def after_step(_, __, ___, tensors: dict) -> dict:
                step()
                return tensors

            self.pipeline(**self.inputs, num_inference_steps=STEPS + 1, callback_on_step_end=after_step)

    def _decode(self, clock: Clock) -> None:
        video, vae = self.config.video, self.pipeline.vae
        # The width of a latent and the frames that one stands for, as Wan's VAE has them.
        cell = 2 ** len(vae.config.temperal_downsample)
        frames = 1 + (video.frames - 1) // 2 ** sum(vae.config.temperal_downsample)
        shape = (1, vae.config.z_dim, frames, video.height // cell, video.width // cell)
        latents = torch.randn(shape, device=self.device)
        clock.start()
        with torch.no_grad():
            vae.decode(latents)
        clock.stop()

    @cached_property
    def inputs(self) -> dict:
        """Arguments of the pipeline's call, but for steps and callback."""
        video, width = self.config.video, self.pipeline.transformer.config.text_dim
        texts = torch.randn(2, 1, TEXT_TOKENS, width, device=self.device, dtype=self.pipeline.transformer.dtype)
        texts /= math.sqrt(width)
        inputs = {
            "prompt_embeds": texts[0],
            "negative_prompt_embeds": texts[1],
            "guidance_scale": self.config.rollout.guidance,
            "height": video.height,
            "width": video.width,
            "num_frames": video.frames,
            "output_type": "latent",
        }
        if self.kind == "vace":
            pictures = [Image.new("RGB", (video.width, video.height), "white") for _ in range(self.references)]
            return inputs | {"reference_images": [pictures]}
        return inputs | {"num_frames": video.frames + self.references * self.pipeline.vae_scale_factor_temporal}
