"""Previews of latents: here three of their channels as colours."""

from __future__ import annotations

from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image


class LatentPreviewer:
    def decode_latent_to_preview_image(self, preview_format: str, x0):
        colours = x0[0, :3, 0] if x0.ndim == 5 else x0[0, :3]
        pixels = ((colours.movedim(0, -1) + 1) / 2).clamp(0, 1).mul(255).byte()
        return preview_format, Image.fromarray(pixels.cpu().numpy()), args.preview_size


def get_previewer(device, latent_format) -> LatentPreviewer | None:
    return None if args.preview_method == LatentPreviewMethod.NoPreviews else LatentPreviewer()
