"""What the trainer and the nodes may ask of any policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..prompts import PromptItem


@dataclass(frozen=True)
class VideoSize:
    """Pixels and frames of a video; `frames` is 4n+1."""

    height: int
    width: int
    frames: int


@dataclass(frozen=True)
class Conditions:
    """All that a policy needs to know of one prompt item, computed once and kept on the CPU.

    `text`, `negative_text`: float [text_len, text_dim], zero-padded. `control`: float [C, F, h, w], the policy's own
    conditioning latents, on the latent grid. `references`: how many pictures of people are among them.
    """

    text: Tensor
    negative_text: Tensor
    control: Tensor
    references: int


@dataclass(frozen=True)
class ConditionBatch:
    """Conditions of B samples with equal shapes, on the policy's device: every tensor has a leading B."""

    text: Tensor
    negative_text: Tensor
    control: Tensor
    references: int


@dataclass(frozen=True)
class Guidance:
    """How far the velocity is moved away from the negative text and, with `image`, from missing references.

    text: scale of the text, 1 for none. image: scale of the references apart from it (Phantom's); None: `text` holds
    for both.
    """

    text: float = 1.0
    image: float | None = None


class Policy(ABC):
    """A video model: `transformer` is what is trained, the rest is frozen."""

    kind: str
    transformer: nn.Module

    @abstractmethod
    def encode(self, item: PromptItem, size: VideoSize) -> Conditions:
        """Text and reference latents of one item. Raises UserError when a reference cannot be read."""

    @abstractmethod
    def latent_shape(self, size: VideoSize, references: int) -> tuple[int, int, int, int]:
        """Shape [C, F, h, w] of one sample's latents: what is drawn from noise and trained."""

    @abstractmethod
    def branches(self, guidance: Guidance) -> int:
        """How often every sample goes through the transformer in one `velocity`. Raises UserError for a scale that this
        kind of policy has not.
        """

    @abstractmethod
    def velocity(self, latents: Tensor, timesteps: Tensor, conditions: ConditionBatch, guidance: Guidance) -> Tensor:
        """Guided velocity, float32, of latents [B, C, F, h, w] at `timesteps` [B] (0..1000 scale).

        All guidance branches that count go through the transformer in one batched forward.
        """

    @abstractmethod
    def decode(self, latents: Tensor, references: int) -> Tensor:
        """Frames uint8 [B, F, H, W, 3] of denoised latents: the clip alone, without references."""

    def batch(self, conditions: Sequence[Conditions]) -> ConditionBatch:
        """Stack equally shaped conditions on the policy's device."""

        def stack(name: str) -> Tensor:
            return torch.stack([getattr(c, name) for c in conditions]).to(self.device, self.dtype)

        return ConditionBatch(stack("text"), stack("negative_text"), stack("control"), conditions[0].references)

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen base (the LoRA may be wider)."""
        return self.transformer.dtype


def buckets(conditions: Sequence[Conditions]) -> dict[int, list[int]]:
    """Number of references -> indices of the samples that have it, in order: what can share a batch (sizes being equal)."""
    found: dict[int, list[int]] = {}
    for index, item in enumerate(conditions):
        found.setdefault(item.references, []).append(index)
    return found
