"""Drawing a video with a policy: what the samplers share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.model_management as management
import comfy.utils
import psutil
import torch
from torch import Tensor

from ..trainers.diffusion.noise import noise_generators, unit_noise
from ..trainers.diffusion.sampling import denoise
from ..trainers.diffusion.schedule import flow_schedule
from ..trainers.diffusion.solvers import SolverName
from ..trainers.errors import UserError
from ..trainers.lora.formats import read_lora
from ..trainers.lora.inject import load_lora_into, remove_lora
from ..trainers.policies.base import Conditions, Guidance, VideoSize
from ..trainers.policies.footprint import step_bytes, vae_bytes
from ..trainers.policies.wan import WanVideoPolicy
from ..trainers.prompts import PromptItem
from .pictures import to_image
from .previews import Progress
from .types import KINDS, LazyPolicy

STEP = 16  # pixels: 8 of the VAE times 2 of the transformer's patches
CLIPS = 3  # float32 copies of a video's pixels that exist at a time
LARGEST = 4096  # pixels
LONGEST = 1025  # frames


@dataclass(frozen=True)
class Sampling:
    """The settings of one sampling: ODE with `steps` steps on a schedule of flow `shift`."""

    size: VideoSize
    steps: int
    shift: float
    guidance: Guidance
    seed: int
    solver: SolverName


def size_problem(width: int | None, height: int | None, frames: int | None) -> str | None:
    """What is wrong with a video's size; None for what comes through a link and is not known yet."""
    for name, value in (("width", width), ("height", height)):
        if value is not None and (not STEP <= value <= LARGEST or value % STEP):
            nearest = min(max(STEP, round(value / STEP) * STEP), LARGEST)
            return f"{name} {value} is not a multiple of {STEP} from {STEP} to {LARGEST}; use {nearest}"
    if frames is not None and (not 1 <= frames <= LONGEST or frames % 4 != 1):
        nearest = min(max(1, round((frames - 1) / 4) * 4 + 1), LONGEST)
        return f"frames {frames} is not 4n+1 from 1 to {LONGEST}; use {nearest}"
    return None


def check_kind(policy: LazyPolicy, kind: str) -> None:
    """Raises UserError when the policy belongs to another sampler."""
    if policy.kind != kind:
        raise UserError(
            f"`policy` is a {KINDS[policy.kind]} model and this is the {KINDS[kind]} Sampler; "
            f"use the {KINDS[policy.kind]} Sampler, or load a {KINDS[kind]} model"
        )


def to_control_clip(video: Tensor, size: VideoSize) -> Tensor:
    """IMAGE -> float [F, height, width, 3] in 0..255, cropped to the video's proportions, then grey if too short."""
    fitted = _fit(video[..., :3], size)
    grey = fitted.new_full((size.frames - len(fitted), *fitted.shape[1:]), 0.5)
    return torch.cat([fitted, grey]) * 255


def to_control_mask(mask: Tensor, size: VideoSize) -> Tensor:
    """MASK [N, H, W] -> float [F, height, width]; one mask serves all frames, else what is missing is drawn anew."""
    fitted = _fit(mask[..., None], size)[..., 0]
    if len(fitted) == 1:
        return fitted.expand(size.frames, -1, -1)
    return torch.cat([fitted, fitted.new_ones(size.frames - len(fitted), *fitted.shape[1:])])


def _fit(frames: Tensor, size: VideoSize) -> Tensor:
    first = frames[: size.frames].cpu().movedim(-1, 1)
    return comfy.utils.common_upscale(first, size.width, size.height, "bilinear", "center").movedim(1, -1)


@contextmanager
def applied_lora(lazy: LazyPolicy) -> Iterator[None]:
    """Within the block the policy acts with its LoRA; after it, and at strength 0, it is the untouched policy."""
    if lazy.lora is None or lazy.strength == 0:
        yield
        return
    transformer = lazy.policy.transformer
    with torch.inference_mode(False):
        load_lora_into(transformer, read_lora(lazy.lora.path), lazy.strength)
    try:
        yield
    finally:
        remove_lora(transformer)


def draw(
    lazy: LazyPolicy, sampling: Sampling, item: PromptItem, **control: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """IMAGE [F, H, W, 3] and LATENT of one item; `control`: what else the policy encodes with it.

    LATENT holds the clip alone, without references, in ComfyUI's units for Wan. Shows progress and previews, ends at
    Cancel. Raises UserError that says what to lower when memory runs out.
    """
    size = sampling.size
    _refuse_more_than_memory(size)
    with explain_out_of_memory(size):
        policy, managed = lazy.policy, lazy.managed
        texts = () if policy.text.knows([item.prompt, item.negative]) else (policy.text.encoder,)
        with managed.use(policy.vae.model, *texts, working_bytes=vae_bytes(policy, size)):
            conditions = policy.encode(item, size, **control)
        working = step_bytes(policy, size, conditions.references, policy.branches(sampling.guidance))
        with managed.use(policy.transformer, working_bytes=working), applied_lora(lazy):
            latents = _denoise(policy, conditions, sampling)
        with managed.use(policy.vae.model, working_bytes=vae_bytes(policy, size)):
            frames = policy.decode(latents, conditions.references)[0]
    clip = policy.vae.raw(_clip(policy, latents, size))
    return to_image(frames), {"samples": clip.to(management.intermediate_device())}


def _denoise(policy: WanVideoPolicy, conditions: Conditions, sampling: Sampling) -> Tensor:
    shape = policy.latent_shape(sampling.size, conditions.references)
    progress = Progress(policy, sampling.steps)
    return denoise(
        policy,
        policy.batch([conditions]),
        flow_schedule(sampling.steps, sampling.shift, policy.device),
        sampling.guidance,
        unit_noise(noise_generators([sampling.seed]), shape, policy.device),
        watch=lambda latents: progress.show(_clip(policy, latents, sampling.size)),
        solver=sampling.solver,
    )


def _clip(policy: WanVideoPolicy, latents: Tensor, size: VideoSize) -> Tensor:
    """The latents of the clip: where there are references among them, they come first."""
    return latents[:, :, -policy.clip_shape(size)[1] :]


def _refuse_more_than_memory(size: VideoSize) -> None:
    """Raises UserError when the frames alone do not fit into the computer: running out there ends ComfyUI without a word."""
    needed, free = CLIPS * 12 * size.frames * size.height * size.width, psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"a video of {size.width}x{size.height} with {size.frames} frames needs about {needed / 1e9:.0f} GB of memory for its "
            f"frames, and {free / 1e9:.0f} GB are free; lower `frames`, then `width` and `height`"
        )


@contextmanager
def explain_out_of_memory(size: VideoSize) -> Iterator[None]:
    """Within the block, running out of the device's memory is told with what to lower."""
    try:
        yield
    except management.OOM_EXCEPTION as error:
        reason = str(error).partition(".")[0]
    else:
        return
    # Outside of `except`: the error holds every tensor of the failed attempt.
    management.unload_all_models()
    raise UserError(
        f"out of memory at {size.width}x{size.height}, {size.frames} frames ({reason}); lower `frames`, then `width` "
        f"and `height`, or choose another `offload` in Load Model"
    )
