"""Sampling a video with a policy: what the sampler nodes share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import comfy.model_management as management
import comfy.utils
import psutil
import torch
from comfy_api.latest import io
from torch import Tensor

from ..trainers.config import BUILT_IN
from ..trainers.diffusion.noise import noise_generators, unit_noise
from ..trainers.diffusion.sampling import denoise
from ..trainers.diffusion.schedule import flow_schedule
from ..trainers.diffusion.solvers import SolverName
from ..trainers.errors import UserError
from ..trainers.lora.formats import read_lora
from ..trainers.lora.inject import lora_parameters, remove_lora
from ..trainers.lora.several import load_loras_into
from ..trainers.memory.plan import TEXT_BYTES
from ..trainers.policies.base import Conditions, Guidance, VideoSize
from ..trainers.policies.blocks import running_blocks
from ..trainers.policies.footprint import step_bytes, vae_bytes
from ..trainers.policies.load import native_size
from ..trainers.policies.vae import TILE
from ..trainers.policies.wan import WanVideoPolicy
from ..trainers.prompts import PromptItem
from .fit import fit, room
from .inputs import require_given
from .memory import module_bytes
from .pictures import opaque, to_image, to_masks
from .previews import SamplingProgress
from .types import POLICY_TITLES, LazyPolicy

logger = logging.getLogger(__name__)

STEP = 16  # pixels: 8 of the VAE times 2 of the transformer's patches
PIXEL_COPIES = 3  # float32 copies of a video's pixels that exist at a time
LARGEST = 4096  # pixels
LONGEST = 1025  # frames
LARGEST_SHARE = 64
"""A video may have this many times the pixels (over all frames) of the videos that the model was trained on."""


@dataclass(frozen=True)
class Sampling:
    """The settings of one sampling: ODE with `steps` steps on a schedule of flow `shift`."""

    size: VideoSize
    steps: int
    shift: float
    guidance: Guidance
    seed: int
    solver: SolverName


def side_input(name: str, default: int, tooltip: str) -> io.Input:
    """The width or height of a video."""
    return io.Int.Input(name, default=default, min=STEP, max=LARGEST, step=STEP, tooltip=tooltip)


def frames_input(name: str, tooltip: str) -> io.Input:
    return io.Int.Input(name, default=81, min=1, max=LONGEST, step=4, tooltip=tooltip)


def size_problem(width: int | None, height: int | None, frames: int | None) -> str | None:
    """What is wrong with a video's size; None for a good one. A value that is None is not judged."""
    for name, value in (("width", width), ("height", height)):
        if value is not None and (not STEP <= value <= LARGEST or value % STEP):
            nearest = min(max(STEP, round(value / STEP) * STEP), LARGEST)
            return f"{name} {value} is not a multiple of {STEP} from {STEP} to {LARGEST}; use {nearest}"
    if frames is not None and (not 1 <= frames <= LONGEST or frames % 4 != 1):
        nearest = min(max(1, round((frames - 1) / 4) * 4 + 1), LONGEST)
        return f"frames {frames} is not 4n+1 from 1 to {LONGEST}; use {nearest}"
    return None


def check_size(policy: LazyPolicy, size: VideoSize) -> None:
    """Raises UserError for a size that no model generates, or that is far beyond what this model was trained on."""
    if problem := size_problem(size.width, size.height, size.frames):
        raise UserError(problem)
    native = native_size(policy.config.source)
    if _pixels(size) > LARGEST_SHARE * _pixels(native):
        name = "TinyWorld" if policy.config.source in BUILT_IN else "this model"
        raise UserError(
            f"{name} generates {native.width}x{native.height} with {native.frames} frames; {size.width}x{size.height} "
            f"with {size.frames} is far more. Set width {native.width}, height {native.height}, frames {native.frames}"
        )


def check_kind(policy: LazyPolicy, kind: str) -> None:
    """Raises UserError when the policy belongs to another sampler, or is none."""
    require_given("policy", policy, LazyPolicy, "Load Model")
    if policy.kind != kind:
        raise UserError(
            f"`policy` is a {POLICY_TITLES[policy.kind]} model and this is the {POLICY_TITLES[kind]} Sampler; "
            f"use the {POLICY_TITLES[policy.kind]} Sampler, or load a {POLICY_TITLES[kind]} model"
        )


def to_control_clip(video: Tensor, size: VideoSize, name: str = "control_video") -> Tensor:
    """IMAGE -> float [F, height, width, 3] in 0..255, cropped to the video's proportions, then grey frames."""
    fitted = _fit(opaque(video, name)[: size.frames], size)
    grey = fitted.new_full((size.frames - len(fitted), *fitted.shape[1:]), 0.5)
    return torch.cat([fitted, grey]) * 255


def to_control_mask(mask: Tensor, size: VideoSize, name: str = "control_mask") -> Tensor:
    """MASK -> float [F, height, width]. One mask serves all frames; where several are too few, all is generated."""
    fitted = _fit(to_masks(mask, name)[: size.frames, ..., None], size)[..., 0]
    if len(fitted) == 1:
        return fitted.expand(size.frames, -1, -1)
    return torch.cat([fitted, fitted.new_ones(size.frames - len(fitted), *fitted.shape[1:])])


def _fit(frames: Tensor, size: VideoSize) -> Tensor:
    """Frames [N, H, W, C] resized to the video's size."""
    return comfy.utils.common_upscale(frames.movedim(-1, 1), size.width, size.height, "bilinear", "center").movedim(
        1, -1
    )


@contextmanager
def applied_loras(lazy: LazyPolicy) -> Iterator[None]:
    """Within the block the policy acts with its LoRAs. After it, and at strength 0, it is the base policy."""
    loras = [(file, strength) for file, strength in lazy.loras if strength]
    if not loras:
        yield
        return
    transformer = lazy.policy.transformer
    with torch.inference_mode(False):
        load_loras_into(transformer, [(read_lora(file.path), strength) for file, strength in loras])
        # The factors are made where the weights are, and swapped blocks wait elsewhere.
        for factor in lora_parameters(transformer).values():
            factor.data = factor.data.to(lazy.policy.device)
    try:
        yield
    finally:
        lazy.managed.empty_slots()
        remove_lora(transformer)


def generate(
    lazy: LazyPolicy, sampling: Sampling, item: PromptItem, **control: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """IMAGE [F, H, W, 3] and LATENT of one item; `control`: further conditions that the policy encodes.

    LATENT holds the clip alone, without references, in ComfyUI's units for Wan. Shows progress and previews; Cancel
    interrupts it. On a card that is too small for the model and its work together, blocks are swapped, guidance
    branches computed one by one, and frames encoded and decoded in tiles. Raises UserError when memory runs out all the
    same, or when the latents or frames are not finite.
    """
    size = sampling.size
    _check_memory(size)
    with explain_out_of_memory(size):
        policy, managed = lazy.policy, lazy.managed
        _encode_texts(lazy, [item.prompt, item.negative])
        with _vae(lazy, size):
            conditions = policy.encode(item, size, **control)
        working = step_bytes(policy, size, conditions.references, branches=1)
        blocks = running_blocks(policy.transformer)
        plan = fit(policy.transformer, blocks, working, policy.branches(sampling.guidance))
        policy.at_once = plan.at_once
        if plan.swapped:
            logger.info("the model does not fit beside its work: its blocks wait in host memory, which is slower")
        use = managed.use(policy.transformer, working_bytes=plan.at_once * working, swapped=plan.swapped)
        with use, applied_loras(lazy):
            latents = _denoise(policy, conditions, sampling)
        with _vae(lazy, size):
            frames = policy.decode(latents, conditions.references)[0]
    clip = policy.vae.raw(_clip(policy, latents, size))
    return to_image(frames), {"samples": clip.to(management.intermediate_device())}


def _encode_texts(lazy: LazyPolicy, texts: list[str]) -> None:
    """Encode the texts that are not known yet; the policy keeps them."""
    text = lazy.policy.text
    if not text.knows(texts):
        swapped = fit(text.encoder, list(text.encoder.encoder.block), TEXT_BYTES).swapped
        with lazy.managed.use(text.encoder, working_bytes=TEXT_BYTES, swapped=swapped):
            text.encode(texts)


@contextmanager
def _vae(lazy: LazyPolicy, size: VideoSize) -> Iterator[None]:
    """The VAE is on the device for frames of this size, in tiles if its work on whole ones has no room there."""
    vae = lazy.policy.vae
    working = vae_bytes(lazy.policy, size)
    vae.tiled = module_bytes(vae.model) + working > room()
    if vae.tiled:
        working = vae_bytes(lazy.policy, VideoSize(TILE, TILE, size.frames))
    with lazy.managed.use(vae.model, working_bytes=working):
        yield


def _denoise(policy: WanVideoPolicy, conditions: Conditions, sampling: Sampling) -> Tensor:
    shape = policy.latent_shape(sampling.size, conditions.references)
    progress = SamplingProgress(policy, sampling.steps)
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
    """The latents of the clip: those of references, if there are any, come first."""
    return latents[:, :, -policy.clip_shape(size)[1] :]


def _pixels(size: VideoSize) -> int:
    return size.frames * size.height * size.width


def _check_memory(size: VideoSize) -> None:
    """Raises UserError when the frames do not fit into the computer's memory: running out there kills ComfyUI."""
    needed, free = PIXEL_COPIES * 12 * _pixels(size), psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"a video of {size.width}x{size.height} with {size.frames} frames needs about {needed / 1e9:.0f} GB of "
            f"memory for its frames, and {free / 1e9:.0f} GB are free; lower `frames`, then `width` and `height`"
        )


@contextmanager
def explain_out_of_memory(size: VideoSize) -> Iterator[None]:
    """Within the block, running out of the device's memory raises UserError with what to lower."""
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
