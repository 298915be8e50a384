"""The options that ComfyUI was started with."""

from __future__ import annotations

from enum import Enum
from types import SimpleNamespace


class LatentPreviewMethod(Enum):
    NoPreviews = "none"
    Auto = "auto"
    Latent2RGB = "latent2rgb"
    TAESD = "taesd"


args = SimpleNamespace(
    cpu=True,
    base_directory=None,
    preview_method=LatentPreviewMethod.NoPreviews,
    preview_size=512,
    disable_metadata=False,
    enable_cors_header=None,
)
