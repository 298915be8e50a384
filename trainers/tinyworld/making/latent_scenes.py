"""Scenes that TinyWorld's policies are trained on: rendered, made imperfect and encoded."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, autocast

from ..models import FRAMES, HEIGHT, PORTRAIT, TEXT_LENGTH, WIDTH
from ..people import appearance
from ..render import Motion, render, render_portraits
from ..scenes import SceneBatch, prompt, sample_scenes
from .distort import distort, random_kinds

IMPERFECTIONS = {"swap": 0.1, "blend": 0.15}
LOSSES = 0.3


def imperfect(
    scenes: SceneBatch, shares: dict[str, float], generator: torch.Generator, losses: float = 0.0
) -> tuple[Tensor, Motion]:
    """Appearance and motion of scenes of which the given shares are distorted.

    In a share `losses` of the scenes all people drift into strangers within the first third.
    """
    severity = 0.6 + 0.4 * torch.rand(len(scenes), generator=generator, device=generator.device)
    altered, moves = distort(scenes, random_kinds(len(scenes), shares, generator), severity, generator)
    strangers = appearance(sample_scenes(len(scenes), generator).people).unsqueeze(2)
    time = torch.linspace(0, 1, altered.shape[2], device=altered.device).view(1, 1, -1, 1)
    lost = (torch.rand(len(scenes), generator=generator, device=generator.device) < losses).float().view(-1, 1, 1, 1)
    return altered + (strangers - altered) * (3 * time).clamp(max=1) * lost, moves


def portraits_as_frames(people: Tensor, smooth: bool = False) -> Tensor:
    """Portraits [N, A] on the white canvas that a policy encodes: float [N, 3, 1, H, W] in [-1, 1].

    VACE shrinks them without antialias, Phantom smoothly (its Lanczos filter is nearly this one).
    """
    square = render_portraits(appearance(people), PORTRAIT)
    mode = {"mode": "bicubic", "antialias": True} if smooth else {"mode": "bilinear"}
    small = F.interpolate(square, size=(HEIGHT, HEIGHT), align_corners=False, **mode).clamp(-1, 1)
    side = (WIDTH - HEIGHT) // 2
    return F.pad(small, (side, side, 0, 0), value=1.0).unsqueeze(2)


def statistics(vae, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and spread of the VAE's latent channels, each [1, z, 1, 1, 1]."""
    shape = (1, -1, 1, 1, 1)
    return (
        torch.tensor(vae.config.latents_mean, device=device).view(shape),
        torch.tensor(vae.config.latents_std, device=device).view(shape),
    )


class LatentScenes:
    """A fixed set of encoded scenes with `count` people: clean targets, imperfect targets, references and prompts."""

    @torch.no_grad()
    def __init__(
        self,
        vae,
        tokenizer,
        count: int,
        scenes: int,
        device: torch.device,
        seed: int,
        smooth: bool = False,
        batch: int = 250,
    ):
        mean, std = statistics(vae, device)
        generator = torch.Generator(device).manual_seed(seed)

        def encode(clip: Tensor) -> Tensor:
            with autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                latents = vae.encode(clip).latent_dist.mode().float()
            return ((latents - mean) / std).half()

        self.blank = encode(torch.zeros(1, 3, FRAMES, HEIGHT, WIDTH, device=device))[0].float()
        parts = []
        for _ in range(scenes // batch):
            sampled = sample_scenes(batch, generator, counts=(count,)).to(device)
            altered, moves = imperfect(sampled, IMPERFECTIONS, generator, LOSSES)
            people = portraits_as_frames(sampled.people[:, :count].flatten(0, 1), smooth)
            references = encode(people).unflatten(0, (batch, count))[:, :, :, 0].transpose(1, 2)
            on_cpu = sampled.to("cpu")
            texts = tokenizer(
                [prompt(on_cpu[i : i + 1]) for i in range(batch)],
                padding="max_length",
                max_length=TEXT_LENGTH,
                return_tensors="pt",
            ).input_ids.to(device)
            parts.append((encode(render(sampled)), encode(render(sampled, altered, moves=moves)), references, texts))
        self.clean, self.imperfect, self.references, self.texts = (torch.cat(p) for p in zip(*parts, strict=True))

    def control(self, references: Tensor) -> Tensor:
        """VACE's control of text-and-references-to-video: [B, 96, R+T, h, w] (tests/golden/vace)."""
        b, _, r, h, w = references.shape
        clip = self.blank.repeat(2, 1, 1, 1).expand(b, -1, -1, -1, -1)
        latents = torch.cat([torch.cat([references, torch.zeros_like(references)], 1), clip], 2)
        mask = torch.cat([latents.new_zeros(b, 64, r, h, w), latents.new_ones(b, 64, clip.shape[2], h, w)], 2)
        return torch.cat([latents, mask], 1)
