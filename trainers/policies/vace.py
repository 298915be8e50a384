"""VACE (Wan 2.1): references come first on the time axis, in the order given, and are fed to a control branch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..prompts import PromptItem
from .base import ConditionBatch, Conditions, Guidance, VideoSize, in_parts
from .wan import WanVideoPolicy, fit_on_white


class VacePolicy(WanVideoPolicy):
    """VACE on diffusers' WanVACETransformer3DModel; see WanVideoPolicy for its parts."""

    kind = "vace"
    fit = staticmethod(fit_on_white)

    def __init__(
        self, transformer, vae, text_encoder, tokenizer, text_len: int = 512, vae_pixels: int | None = None
    ) -> None:
        super().__init__(transformer, vae, text_encoder, tokenizer, text_len, vae_pixels)
        self.layers = len(transformer.config.vace_layers)
        expected = 2 * self.vae.channels + self.vae.spatial**2
        if transformer.config.vace_in_channels != expected:
            raise UserError(
                f"this transformer takes {transformer.config.vace_in_channels} control channels, "
                f"this VAE makes {expected}; use the VAE that belongs to the transformer"
            )

    def latent_shape(self, size: VideoSize, references: int) -> tuple[int, int, int, int]:
        channels, frames, height, width = self.clip_shape(size)
        return channels, references + frames, height, width

    def encode(
        self,
        item: PromptItem,
        size: VideoSize,
        control_video: np.ndarray | None = None,
        control_mask: np.ndarray | None = None,
    ) -> Conditions:
        """Encode text, references and source clip of one item.

        control_video: uint8 or float [F, H, W, 3] in 0..255, the clip to edit (None: mid grey). control_mask: [F, H, W]
        in 0..1, 1 where to generate (None: everywhere). Texts, reference images and the empty clip are cached. Raises
        UserError for an unreadable reference, a size that does not fit, or a control clip that has another size or
        values that are not finite.
        """
        self.check_size(size)
        text, negative = self.text.encode([item.prompt, item.negative])
        references = self.encode_references(item.references, size)
        if control_video is None and control_mask is None:
            mask = torch.ones(size.frames, size.height, size.width)
            inactive = reactive = self._encode_blank(size)
        else:
            mask = _clip(control_mask, size, (), "control_mask", np.ones)
            video = _clip(control_video, size, (3,), "control_video", lambda shape: np.full(shape, 127.5)) / 127.5 - 1
            inactive, reactive = self.vae.encode(torch.stack(split_source(video.permute(3, 0, 1, 2), mask)))
        control = control_latents(inactive, reactive, references, mask)
        return Conditions(text, negative, control, len(references))

    def branches(self, guidance: Guidance) -> int:
        if guidance.image is not None:
            raise UserError(
                f"VACE has no image guidance, and an image scale of {guidance.image:g} is given; "
                "remove the image scale (rollout.image_guidance, evaluation.image_guidance), or use a Phantom policy"
            )
        return 1 if guidance.text == 1 else 2

    def velocity(
        self,
        latents: Tensor,
        timesteps: Tensor,
        conditions: ConditionBatch,
        guidance: Guidance,
        control_scale: float = 1.0,
    ) -> Tensor:
        """Guided velocity u + guidance.text (c - u), float32; c and u share one forward.

        latents: [B, C, F, h, w]; timesteps: [B] (0..1000). With a scale of 1, u is not computed. `control_scale`
        multiplies every output of the control branch.
        """
        branches = self.branches(guidance)
        text = conditions.text if branches == 1 else torch.cat([conditions.text, conditions.negative_text])
        scales = conditions.control.new_full((self.layers,), control_scale)
        predicted = in_parts(
            lambda *part: predict(self.transformer, *part, scales),
            self.at_once,
            torch.cat([latents.to(self.dtype)] * branches),
            torch.cat([timesteps] * branches),
            text,
            torch.cat([conditions.control] * branches),
        )
        if branches == 1:
            return predicted
        with_text, without = predicted.chunk(2)
        return without + guidance.text * (with_text - without)

    def decode(self, latents: Tensor, references: int) -> Tensor:
        """Frames uint8 [B, F, H, W, 3] of denoised latents, without the reference frames, on the VAE's device."""
        return self.vae.decode(latents[:, :, references:])

    def _encode_blank(self, size: VideoSize) -> Tensor:
        def compute(_: list[int]) -> Tensor:
            return self.vae.encode(torch.zeros(1, 3, size.frames, size.height, size.width))

        return self._latents.resolve([("blank", size)], compute)[0]


def predict(transformer, latents: Tensor, timesteps: Tensor, text: Tensor, control: Tensor, scales: Tensor) -> Tensor:
    """The transformer's velocity, float32 [B, C, F, h, w], without guidance.

    latents: [B, C, F, h, w]; timesteps: [B] (0..1000); text: [B, text_len, dim], zero-padded; control: [B, 2z + s^2, F,
    h, w]; scales: one per control layer.
    """
    return transformer(
        hidden_states=latents,
        timestep=timesteps,
        encoder_hidden_states=text,
        control_hidden_states=control,
        control_hidden_states_scale=scales,
        return_dict=False,
    )[0].float()


def split_source(video: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The parts to keep and to generate of a clip [3, F, H, W] in [-1, 1]; each is zero (mid grey) elsewhere.

    The soft mask [F, H, W] is split at 0.5. Source: ali-vilab/VACE `vace_encode_frames`.
    """
    redo = (mask > 0.5).to(video)
    return video * (1 - redo), video * redo


def control_latents(inactive: Tensor, reactive: Tensor, references: Sequence[Tensor], mask: Tensor) -> Tensor:
    """The control input [2z + s^2, R + f, h, w] (96 channels for Wan): inactive, reactive, mask; references first.

    inactive, reactive: latents [z, f, h, w] of the two parts of the source; references: R latents [z, 1, h, w]; mask:
    soft, [F, h s, w s]. A reference has zero latents for its reactive part (not the encoding of black) and zero mask.
    Mask channel s dy + dx holds pixel (dy, dx) of every s x s cell; latent frame i takes the mask of frame floor((i +
    0.5) F / f). Source: ali-vilab/VACE `vace_encode_frames`, `vace_encode_masks`, `vace_latent`.
    """
    frames, height, width = inactive.shape[1:]
    cell = mask.shape[1] // height
    times = ((torch.arange(frames) + 0.5) * (mask.shape[0] / frames)).long()
    cells = mask[times].reshape(frames, height, cell, width, cell).permute(2, 4, 0, 1, 3).flatten(0, 1).to(inactive)
    clip = torch.cat([inactive, reactive, cells])
    front = [torch.cat([r, torch.zeros_like(r), r.new_zeros(cell**2, *r.shape[1:])]) for r in references]
    return torch.cat([*front, clip], dim=1)


def _clip(given, size: VideoSize, tail: tuple[int, ...], name: str, default) -> Tensor:
    """`given` (or the default) as float32 [F, H, W, *tail]."""
    shape = (size.frames, size.height, size.width, *tail)
    clip = torch.as_tensor(np.asarray(given) if given is not None else default(shape)).float()
    if clip.shape != shape:
        raise UserError(
            f"{name} has shape {tuple(clip.shape)}, the video needs {shape}; resize it or change the video's size"
        )
    if not clip.isfinite().all():
        raise UserError(f"{name} has values that are not finite (NaN or infinity); give a clip without them")
    return clip
