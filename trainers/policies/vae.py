"""Wan's VAE between frames and normalised latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UserError
from .base import OVERFLOW_REMEDY
from .whole_clip import WholeClips

# More at once is slower on a CPU (its caches overflow), and faster on anything else until memory ends.
VAE_PIXELS = {"cpu": 2**18, "other": 2**24}
WHOLE_CLIP_VALUES = 2**22
"""Values of the widest activation of a clip that a CPU takes as a whole: TinyWorld's, and no video of the real VAE."""
TILE, STRIDE = 256, 192
"""Pixels of a tile's side, and from a tile to the next; where neighbours overlap they are blended."""
DAMAGED = "the VAE's weights are damaged; give wan_2.1_vae.safetensors, downloaded again"


class WanVae:
    """AutoencoderKLWan between pixels and normalised latents, many videos at a time.

    `pixels`: how many pixels (frames x height x width, over the batch) go through the network at once; more need more
    memory. None: chosen by device. `tiled`: frames larger than a tile go through in tiles, which need less memory and
    change them a little. The norms of `model` are replaced by faster ones with the same weights.
    """

    def __init__(self, model, pixels: int | None = None) -> None:
        self.model = model
        self.pixels = pixels
        self.tiled = False
        _use_channel_norm(model)
        self.channels: int = model.config.z_dim
        self.spatial = 2 ** len(model.config.temperal_downsample)
        self.temporal = 2 ** sum(model.config.temperal_downsample)
        shape = (1, self.channels, 1, 1, 1)
        self.mean = torch.tensor(model.config.latents_mean, dtype=torch.float32).view(shape)
        self.std = torch.tensor(model.config.latents_std, dtype=torch.float32).view(shape)

    @torch.no_grad()
    def encode(self, videos: Tensor) -> Tensor:
        """Videos float [B, 3, F, H, W] in [-1, 1] -> normalised latents float32 [B, z, 1 + (F-1)/4, H/8, W/8].

        The most likely latents, on the CPU. Raises UserError when they are not finite.
        """
        self._set_tiling()
        parts, pixels = [], videos.shape[2:].numel()
        whole = self._whole(pixels)
        for part in videos.split(self._at_once(pixels)):
            part = part.to(self.model.device, self.model.dtype)
            latents = whole.encode(part) if whole else self.model.encode(part).latent_dist.mode()
            parts.append((latents.float().cpu() - self.mean) / self.std)
        encoded = torch.cat(parts)
        if not encoded.isfinite().all():
            cause = DAMAGED if videos.isfinite().all() else "the frames to encode are not; give other frames"
            raise UserError(f"encoding gave latents that are not finite (NaN or infinity): {cause}")
        return encoded

    def raw(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, z, f, h, w] -> float32, in the units of the network and of ComfyUI's LATENT."""
        return latents.float() * self.std.to(latents.device) + self.mean.to(latents.device)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, z, f, h, w] -> frames uint8 [B, F, H, W, 3] on the VAE's device.

        Raises UserError when latents or pixels are not finite, which uint8 would show as black.
        """
        self._set_tiling()
        frames = 1 + (latents.shape[2] - 1) * self.temporal
        pixels = frames * latents.shape[3:].numel() * self.spatial**2
        whole = self._whole(pixels)
        videos, finite = [], torch.ones((), dtype=torch.bool, device=self.model.device)
        for part in latents.split(self._at_once(pixels)):
            raw = self.raw(part.to(self.model.device)).to(self.model.dtype)
            video = (whole.decode(raw) if whole else self.model.decode(raw).sample).float()
            finite &= video.isfinite().all()
            video = ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            videos.append(video.permute(0, 2, 3, 4, 1).contiguous())
        # Asked once: every question waits for the device.
        if not finite:
            cause = DAMAGED if latents.isfinite().all() else f"the latents are not; {OVERFLOW_REMEDY}"
            raise UserError(f"decoding gave pixels that are not finite (NaN or infinity): {cause}")
        return torch.cat(videos)

    def _set_tiling(self) -> None:
        if self.tiled:
            self.model.enable_tiling(TILE, TILE, STRIDE, STRIDE)
        else:
            self.model.disable_tiling()

    def _whole(self, pixels_each: int) -> WholeClips | None:
        """What encodes and decodes clips of so many pixels instead of diffusers' frame by frame, if anything does."""
        small = pixels_each * self.model.config.base_dim <= WHOLE_CLIP_VALUES
        return (
            WholeClips(self.model)
            if small and not self.tiled and self.model.device.type == "cpu" and self.model.dtype == torch.float32
            else None
        )

    def _at_once(self, pixels_each: int) -> int:
        limit = self.pixels or VAE_PIXELS["cpu" if self.model.device.type == "cpu" else "other"]
        return max(1, limit // pixels_each)


class ChannelNorm(nn.Module):
    """diffusers' WanRMS_norm with the same weights, 5 times as fast on a CPU.

    x / |x| over the channels, times sqrt(channels) gamma.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.gamma = original.gamma
        self.bias = original.bias
        self.scale = original.scale
        self.dim = 1 if original.channel_first else -1

    def forward(self, x: Tensor) -> Tensor:
        length = x.square().sum(self.dim, keepdim=True).clamp(min=1e-24)
        return x * (length.rsqrt() * self.scale) * self.gamma + self.bias


def _use_channel_norm(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__ == "WanRMS_norm":
                setattr(module, name, ChannelNorm(child))
