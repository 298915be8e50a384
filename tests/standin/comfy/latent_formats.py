"""Wan 2.1's latents."""

from __future__ import annotations

from inspect import signature

import torch
from diffusers import AutoencoderKLWan


def _statistics(name: str) -> torch.Tensor:
    return torch.tensor(signature(AutoencoderKLWan.__init__).parameters[name].default).view(1, 16, 1, 1, 1)


class Wan21:
    latent_channels = 16

    def __init__(self) -> None:
        self.latents_mean, self.latents_std = _statistics("latents_mean"), _statistics("latents_std")

    def process_in(self, latent):
        return (latent - self.latents_mean.to(latent)) / self.latents_std.to(latent)

    def process_out(self, latent):
        return latent * self.latents_std.to(latent) + self.latents_mean.to(latent)
