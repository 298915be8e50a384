"""Texts and pictures that a node shows."""

from __future__ import annotations

import os
import secrets

import folder_paths
from PIL import Image


class PreviewText:
    def __init__(self, value: str, **_) -> None:
        self.value = value

    def as_dict(self) -> dict:
        return {"text": (self.value,)}


class PreviewImage:
    """IMAGE [N, H, W, 3] as files of the temporary folder."""

    def __init__(self, image, animated: bool = False, cls=None, **_) -> None:
        self.animated, self.values = animated, []
        folder = folder_paths.get_temp_directory()
        os.makedirs(folder, exist_ok=True)
        for frame in image:
            name = f"ComfyUI_temp_{secrets.token_hex(6)}_.png"
            Image.fromarray((frame.cpu().clamp(0, 1) * 255).byte().numpy()).save(os.path.join(folder, name))
            self.values.append({"filename": name, "subfolder": "", "type": "temp"})

    def as_dict(self) -> dict:
        return {"images": self.values, "animated": (self.animated,)}
