"""Training of TinyWorld's VAE."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, autocast

from ..models import FRAMES, HEIGHT, WIDTH, build_vae
from ..render import Motion, render
from ..scenes import SceneBatch, sample_scenes
from .latent_scenes import imperfect, portraits_as_frames
from .steps import Clock, cosine, graphed


def train_vae(
    steps: int,
    seconds: float,
    device: torch.device,
    clips: int = 12000,
    batch: int = 48,
    learning_rate: float = 2e-3,
    seed: int = 1,
):
    """A VAE trained to reconstruct clips and portraits: L1, L1 of image gradients for edges, and a weak KL."""
    torch.manual_seed(seed)
    vae = build_vae().to(device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        scenes = [sample_scenes(200, generator) for _ in range(max(1, clips // 200))]
        films = torch.cat([(render(s, *_looks_and_moves(s, generator)) * 127).to(torch.int8) for s in scenes])
        faces = torch.cat([(portraits_as_frames(s.people[:, :2].flatten(0, 1)) * 127).to(torch.int8) for s in scenes])
    parameters = list(vae.parameters())
    rate = torch.tensor(learning_rate, device=device)
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4, fused=True, capturable=device.type == "cuda")

    def step_on(pictures: Tensor, count: int) -> Callable[[], Tensor]:
        def step() -> Tensor:
            clip = pictures[torch.randint(len(pictures), (count,), device=device)].float() / 127
            with autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False):
                posterior = vae.encode(clip).latent_dist
                latents = posterior.mean + torch.randn_like(posterior.mean) * torch.exp(0.5 * posterior.logvar)
                output = vae.decode(latents).sample.float()
            # People are small: what differs from the picture's brightest colour counts more.
            weight = 1 + 4 * (clip - clip.amax((2, 3, 4), keepdim=True)).abs().mean(1, keepdim=True).clamp(0, 1)
            loss = (weight * (output - clip).abs()).mean()
            for axis in (-1, -2):
                loss = loss + (output.diff(dim=axis) - clip.diff(dim=axis)).abs().mean()
            (loss + 1e-6 * posterior.kl().float().mean()).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=False)
            return loss.detach()

        return step

    runners = [graphed(step_on(films, batch)), graphed(step_on(faces, 2 * batch))]
    clock, step = Clock("vae", steps, seconds), 0
    while clock.running(step):
        rate.fill_(learning_rate * cosine(clock.fraction(step)))
        loss = runners[step % 4 == 3]()
        step += 1
        if step % 20 == 1:
            clock.log(step - 1, loss.clone(), every=400)
    return normalise_latents(vae, generator, device)


def _looks_and_moves(scenes: SceneBatch, generator: torch.Generator) -> tuple[Tensor, int, int, int, Motion]:
    """Arguments of `render` for scenes some of which blend or drift, so that the VAE learns such people too."""
    altered, moves = imperfect(scenes, {"blend": 0.2, "drift": 0.2}, generator)
    return altered, FRAMES, HEIGHT, WIDTH, moves


@torch.no_grad()
def normalise_latents(vae, generator: torch.Generator, device: torch.device):
    """Write each latent channel's mean and spread over rendered clips into the config, as in Wan's VAE."""
    clips = [vae.encode(render(sample_scenes(48, generator).to(device))).latent_dist.mode() for _ in range(8)]
    flat = torch.cat(clips).transpose(0, 1).flatten(1)
    vae.register_to_config(latents_mean=flat.mean(1).tolist(), latents_std=flat.std(1).tolist())
    return vae
