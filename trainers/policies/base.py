"""The interface of every policy, for samplers and trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..prompts import PromptItem

OVERFLOW_REMEDY = "lower the LoRA's strength or use dtype float32; if neither helps, weights of the model are damaged"


@dataclass(frozen=True)
class VideoSize:
    """Pixels and frames of a video; `frames` is 4n+1."""

    height: int
    width: int
    frames: int


@dataclass(frozen=True)
class Conditions:
    """Encoded inputs of one prompt item, computed once and kept on the CPU.

    `text`, `negative_text`: float [text_len, text_dim], zero-padded. `control`: float [C, F, h, w], the policy's own
    conditioning latents, on the latent grid. `references`: number of reference images among them.
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
    """Scales of classifier-free guidance.

    text: scale of the text; 1 is no guidance. image: scale of the reference images (Phantom only); None: `text` is used
    for both.
    """

    text: float = 1.0
    image: float | None = None


class Policy(ABC):
    """A video model. A LoRA on `transformer` is trained; everything else is frozen.

    `at_once`: how many samples, every guidance branch counted, go through the transformer in one forward, where memory
    is short. None: all of them.
    """

    kind: str
    transformer: nn.Module
    at_once: int | None = None

    @abstractmethod
    def encode(self, item: PromptItem, size: VideoSize) -> Conditions:
        """Encode text and reference images of one item. Raises UserError when a reference cannot be read."""

    @abstractmethod
    def latent_shape(self, size: VideoSize, references: int) -> tuple[int, int, int, int]:
        """Shape [C, F, h, w] of one sample's latents, which start as noise."""

    @abstractmethod
    def branches(self, guidance: Guidance) -> int:
        """Number of guidance branches that one `velocity` computes for every sample.

        Raises UserError for an image scale, where the policy has no image guidance.
        """

    @abstractmethod
    def velocity(self, latents: Tensor, timesteps: Tensor, conditions: ConditionBatch, guidance: Guidance) -> Tensor:
        """Guided velocity, float32, of latents [B, C, F, h, w] at `timesteps` [B] (0..1000 scale).

        All guidance branches with a weight go through the transformer in one batched forward, as far as `at_once` lets
        them.
        """

    @abstractmethod
    def decode(self, latents: Tensor, references: int) -> Tensor:
        """Frames uint8 [B, F, H, W, 3] of denoised latents, without the reference frames."""

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
        """Of the base policy's weights; the LoRA's may be float32."""
        return self.transformer.dtype


def in_parts(predict: Callable[..., Tensor], at_once: int | None, *inputs: Tensor) -> Tensor:
    """`predict` of inputs that share their leading dimension, for at most `at_once` rows at a time."""
    if at_once is None or len(inputs[0]) <= at_once:
        return predict(*inputs)
    return torch.cat([predict(*part) for part in zip(*(tensor.split(at_once) for tensor in inputs), strict=True)])


def buckets(conditions: Sequence[Conditions]) -> dict[int, list[int]]:
    """Indices of the samples by their number of references: samples of one size and number can share a batch."""
    found: dict[int, list[int]] = {}
    for index, item in enumerate(conditions):
        found.setdefault(item.references, []).append(index)
    return found
