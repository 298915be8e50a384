"""Progress of sampling in the editor, with a preview of the video."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management as management
import comfy.utils
import latent_preview
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy.latent_formats import Wan21
from PIL import Image
from torch import Tensor

from ..trainers.policies.wan import WanVideoPolicy

Preview = tuple[str, Image.Image, int]  # as ComfyUI's ProgressBar takes it: format, picture, largest side in pixels
SMALLEST = 256  # pixels: smaller pictures, such as TinyWorld's, are enlarged


class SamplingProgress:
    """Counts `steps` and shows a preview of the first frame after each, if ComfyUI's settings ask for previews."""

    def __init__(self, policy: WanVideoPolicy, steps: int) -> None:
        self._bar = comfy.utils.ProgressBar(steps)
        self._preview = _previewer(policy)

    def show(self, clip: Tensor) -> None:
        """One more step is done; `clip`: the current estimate of the clean latents [B, C, F, h, w]."""
        management.throw_exception_if_processing_interrupted()
        # The first latent frame is the only one that can be decoded alone.
        preview = self._preview(clip[:1, :, :1]) if self._preview else None
        self._bar.update_absolute(self._bar.current + 1, preview=preview)


def _previewer(policy: WanVideoPolicy) -> Callable[[Tensor], Preview] | None:
    """ComfyUI's own previewer for the latents of Wan's VAE; those of another VAE, such as TinyWorld's, are decoded."""
    core = latent_preview.get_previewer(policy.device, Wan21())
    if torch.allclose(policy.vae.mean, Wan21().latents_mean, atol=1e-3):
        return (lambda latents: core.decode_latent_to_preview_image("JPEG", latents)) if core else None
    if args.preview_method == LatentPreviewMethod.NoPreviews:
        return None
    return lambda latents: _enlarged(policy.vae.decode(latents)[0, 0])


def _enlarged(frame: Tensor) -> Preview:
    picture = Image.fromarray(frame.cpu().numpy())
    factor = -(-SMALLEST // max(picture.size))
    return (
        "JPEG",
        picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST),
        args.preview_size,
    )
