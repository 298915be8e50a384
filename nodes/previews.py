"""Progress of a sampling in the editor, with a picture of what is coming."""

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

Picture = tuple[str, Image.Image, int]  # as ComfyUI's ProgressBar wants it: format, picture, largest side
SMALLEST = 256  # pixels: below it a picture is enlarged, so that TinyWorld's can be seen


class Progress:
    """Counts `steps` and shows the first frame after each, if the user wants previews."""

    def __init__(self, policy: WanVideoPolicy, steps: int) -> None:
        self._bar = comfy.utils.ProgressBar(steps)
        self._picture = _previewer(policy)

    def show(self, clip: Tensor) -> None:
        """One more step is done, and expects these clean latents [B, C, F, h, w] of the clip."""
        management.throw_exception_if_processing_interrupted()
        # The first latent frame is the only one that can be decoded alone.
        preview = self._picture(clip[:1, :, :1]) if self._picture else None
        self._bar.update_absolute(self._bar.current + 1, preview=preview)


def _previewer(policy: WanVideoPolicy) -> Callable[[Tensor], Picture] | None:
    """ComfyUI's own previews for Wan's latents; those of another VAE are decoded: quick, where it is TinyWorld's."""
    core = latent_preview.get_previewer(policy.device, Wan21())
    if torch.allclose(policy.vae.mean, Wan21().latents_mean, atol=1e-3):
        return (lambda latents: core.decode_latent_to_preview_image("JPEG", latents)) if core else None
    if args.preview_method == LatentPreviewMethod.NoPreviews:
        return None
    return lambda latents: _enlarged(policy.vae.decode(latents)[0, 0])


def _enlarged(frame: Tensor) -> Picture:
    picture = Image.fromarray(frame.cpu().numpy())
    factor = -(-SMALLEST // max(picture.size))
    return (
        "JPEG",
        picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST),
        args.preview_size,
    )
