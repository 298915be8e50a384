"""How well frames show what the prompt says, by a CLIP model that the user has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import AlignmentRewardConfig
from ..errors import UserError
from .geometry import frame_indices

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of RGB in 0 to 1, as every CLIP was trained."""
REMEDY = "give the folder of a CLIP model as transformers writes it, e.g. of openai/clip-vit-base-patch32"


class TextAlignment:
    """Mean cosine of a prompt's embedding and those of some frames, by CLIP (arXiv 2103.00020).

    A prompt longer than the model reads (77 tokens) counts as far as it is read.
    """

    def __init__(self, model: torch.nn.Module, tokenizer: object, frames: int) -> None:
        self.model, self.tokenizer, self.frames = model.eval().requires_grad_(False), tokenizer, frames

    @classmethod
    def load(cls, config: AlignmentRewardConfig, device: torch.device | str) -> TextAlignment:
        """Raises UserError for a folder that holds no CLIP model; nothing is downloaded."""
        from transformers import AutoTokenizer, CLIPModel

        folder = find_clip(config)
        try:
            model = CLIPModel.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers raises almost anything for a broken file
            raise UserError(f"rewards.alignment.source: {folder} cannot be loaded ({error}); {REMEDY}") from error
        return cls(model.to(device), tokenizer, config.frames)

    @torch.no_grad()
    def __call__(self, videos: Sequence[Tensor], prompts: Sequence[str]) -> list[float]:
        """-1 to 1 for each video uint8 [F, H, W, 3] and its prompt."""
        return [self._one(video, prompt) for video, prompt in zip(videos, prompts, strict=True)]

    def _one(self, video: Tensor, prompt: str) -> float:
        config, device = self.model.config, next(self.model.parameters()).device
        words = self.tokenizer(
            [prompt], truncation=True, max_length=config.text_config.max_position_embeddings, return_tensors="pt"
        )
        chosen = list(range(len(video))) if len(video) <= self.frames else frame_indices(len(video), self.frames)
        pixels = _pixels(video[chosen].to(device), config.vision_config.image_size)
        found = self.model(
            input_ids=words["input_ids"].to(device),
            attention_mask=words["attention_mask"].to(device),
            pixel_values=pixels,
        )
        cosines = F.cosine_similarity(found.image_embeds.double(), found.text_embeds.double())
        return cosines.mean().item()


def is_clip(folder: Path) -> bool:
    """Whether the folder's config.json is that of a CLIP model."""
    return _kind(folder) == "clip"


def _kind(folder: Path) -> str | None:
    """None where config.json is missing, damaged or of something else."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def find_clip(config: AlignmentRewardConfig) -> Path:
    """The folder of the CLIP model. Raises UserError when it holds none."""
    folder = Path(config.source)
    kind = _kind(folder)
    if kind is None:
        raise UserError(f"rewards.alignment.source: {folder} has no readable config.json; {REMEDY}")
    if kind != "clip":
        raise UserError(f"rewards.alignment.source: {folder} holds a model of type `{kind}`; {REMEDY}")
    return folder


def _pixels(frames: Tensor, side: int) -> Tensor:
    """uint8 [n, H, W, 3] as the input [n, 3, side, side]: the shorter side made `side` long, and the middle cut out."""
    planes = frames.permute(0, 3, 1, 2).float() / 255
    height, width = planes.shape[-2:]
    scale = side / min(height, width)
    size = [max(side, round(length * scale)) for length in (height, width)]
    planes = F.interpolate(planes, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = ((length - side) // 2 for length in size)
    middle = planes[:, :, top : top + side, left : left + side]
    mean, deviation = (planes.new_tensor(of)[:, None, None] for of in (MEAN, DEVIATION))
    return (middle - mean) / deviation
