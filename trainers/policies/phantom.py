"""Phantom (Wan 2.1): clean reference latents follow the clip on the time axis, and guidance has two scales."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError
from ..prompts import PromptItem
from .base import ConditionBatch, Conditions, Guidance, VideoSize, in_parts
from .wan import WanVideoPolicy, fit_on_white_sharply


class PhantomPolicy(WanVideoPolicy):
    """Phantom on diffusers' WanTransformer3DModel; see WanVideoPolicy for its parts.

    Only the clip's latents are sampled and trained: the references carry no noise, so they have no log-probability.
    They are appended to the clip in every forward, and the transformer's output for them is cut off.
    """

    kind = "phantom"
    fit = staticmethod(fit_on_white_sharply)

    def __init__(
        self, transformer, vae, text_encoder, tokenizer, text_len: int = 512, vae_pixels: int | None = None
    ) -> None:
        super().__init__(transformer, vae, text_encoder, tokenizer, text_len, vae_pixels)
        if transformer.config.in_channels != self.vae.channels:
            raise UserError(
                f"this transformer takes latents of {transformer.config.in_channels} channels, "
                f"this VAE makes {self.vae.channels}; use the VAE that belongs to the transformer"
            )

    def latent_shape(self, size: VideoSize, references: int) -> tuple[int, int, int, int]:
        return self.clip_shape(size)

    def encode(self, item: PromptItem, size: VideoSize) -> Conditions:
        """Encode text and reference images [z, R, h, w] of one item; both are cached.

        Raises UserError for an unreadable reference or a size that does not fit.
        """
        self.check_size(size)
        text, negative = self.text.encode([item.prompt, item.negative])
        references = self.encode_references(item.references, size)
        channels, _, height, width = self.clip_shape(size)
        control = torch.cat([torch.zeros(channels, 0, height, width), *references], dim=1)
        return Conditions(text, negative, control, len(references))

    def branches(self, guidance: Guidance) -> int:
        return sum(weight != 0 for weight in branch_weights(guidance))

    def velocity(self, latents: Tensor, timesteps: Tensor, conditions: ConditionBatch, guidance: Guidance) -> Tensor:
        """Guided velocity, float32, of the clip's latents [B, z, f, h, w] at `timesteps` [B] (0..1000)."""
        return guided(
            self.transformer,
            latents.to(self.dtype),
            conditions.control,
            timesteps,
            conditions.text,
            conditions.negative_text,
            guidance,
            self.at_once,
        )

    def decode(self, latents: Tensor, references: int) -> Tensor:
        """Frames uint8 [B, F, H, W, 3] of denoised latents, on the VAE's device."""
        return self.vae.decode(latents)


def branch_weights(guidance: Guidance) -> tuple[float, float, float]:
    """Weights of the three branches in v_neg + s_img (v_img - v_neg) + s_text (v_img_text - v_img).

    Their order: v_img_text (references, prompt), v_img (references, negative text), v_neg (no references, negative
    text). A branch of weight 0 need not be computed: equal scales leave two (plain guidance against v_neg), scales of 1
    only the first. Source: Phantom-video/Phantom `Phantom_Wan_S2V.generate`.
    """
    text = guidance.text
    image = text if guidance.image is None else guidance.image
    return text, image - text, 1 - image


def with_references(clip: Tensor, references: Tensor) -> Tensor:
    """The transformer's input [B, z, f + R, h, w]: clip [B, z, f, h, w], then clean references [B, z, R, h, w]."""
    return torch.cat([clip, references.to(clip)], dim=2)


def guided(
    transformer,
    clip: Tensor,
    references: Tensor,
    timesteps: Tensor,
    text: Tensor,
    negative_text: Tensor,
    guidance: Guidance,
    at_once: int | None = None,
) -> Tensor:
    """The clip's guided velocity, float32 [B, z, f, h, w]; branches with a weight share forwards of `at_once` rows.

    clip: [B, z, f, h, w]; references: [B, z, R, h, w], normalised latents, zero in v_neg; timesteps: [B] (0..1000), of
    the clip and of the references alike; text, negative_text: [B, text_len, dim], zero-padded.
    """
    present, absent = with_references(clip, references), with_references(clip, torch.zeros_like(references))
    inputs = [(present, text), (present, negative_text), (absent, negative_text)]
    weights, used = zip(*[(w, i) for w, i in zip(branch_weights(guidance), inputs, strict=True) if w], strict=True)
    latents, texts = (torch.cat(part) for part in zip(*used, strict=True))
    times = torch.cat([timesteps] * len(used))
    velocities = in_parts(lambda *part: predict(transformer, *part), at_once, latents, times, texts)
    parts = velocities[:, :, : clip.shape[2]].chunk(len(used))
    return sum(weight * part for weight, part in zip(weights, parts, strict=True))


def predict(transformer, latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
    """The transformer's velocity, float32, of all frames [B, z, f + R, h, w], without guidance."""
    return transformer(hidden_states=latents, timestep=timesteps, encoder_hidden_states=text, return_dict=False)[
        0
    ].float()
