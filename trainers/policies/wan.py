"""What VACE and Phantom share: reference images and prompts become latents and text embeddings."""

from __future__ import annotations

import hashlib
import html
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import ftfy
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..errors import UserError
from ..pictures.reading import read_pixels
from .base import Policy, VideoSize
from .cpu_blocks import use_cpu_blocks
from .encodings import EncodingStore
from .patches import use_patch_products
from .vae import WanVae

CACHE_BYTES = 2**30


class Cache:
    """Tensors on the CPU by key; beyond `limit` bytes the least recently used are dropped.

    `store`: where they are kept on disk as well, if set.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self.limit = limit
        self.store: EncodingStore | None = None
        self.bytes = 0
        self._entries: OrderedDict[Hashable, Tensor] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries or (self.store is not None and key in self.store)

    def __getitem__(self, key: Hashable) -> Tensor:
        self._entries.move_to_end(key)
        return self._entries[key]

    def __setitem__(self, key: Hashable, value: Tensor) -> None:
        old = self._entries.pop(key, None)
        self._entries[key] = value
        self.bytes += value.nbytes - (old.nbytes if old is not None else 0)
        while self.bytes > self.limit and len(self._entries) > 1:
            self.bytes -= self._entries.popitem(last=False)[1].nbytes

    def resolve(self, keys: Sequence[Hashable], compute: Callable[[list[int]], Sequence[Tensor]]) -> list[Tensor]:
        """The values of `keys`. `compute` returns those of the missing ones, given their positions in `keys`."""
        held = {key: value for key in keys if (value := self._find(key)) is not None}
        missing = [position for position, key in enumerate(keys) if key not in held and key not in keys[:position]]
        if missing:
            for position, value in zip(missing, compute(missing), strict=True):
                self[keys[position]] = held[keys[position]] = value
                if self.store is not None:
                    self.store.put(keys[position], value)
        return [held[key] for key in keys]

    def _find(self, key: Hashable) -> Tensor | None:
        if key in self._entries:
            return self[key]
        found = self.store.get(key) if self.store is not None else None
        if found is not None:
            self[key] = found
        return found


def fit_on_white(picture: np.ndarray, height: int, width: int) -> Tensor:
    """Fit the whole picture uint8 [h, w, 3] as large as possible, centred on white: float32 [3, height, width].

    Values in [-1, 1]. Bilinear without antialias, sides and margins rounded down, as ali-vilab/VACE's `prepare_source`
    and diffusers do.
    """
    pixels = torch.from_numpy(picture).permute(2, 0, 1).float() / 127.5 - 1
    rows, columns = pixels.shape[1:]
    scale = min(height / rows, width / columns)
    size = max(1, int(rows * scale)), max(1, int(columns * scale))
    return _on_white(F.interpolate(pixels[None], size=size, mode="bilinear", align_corners=False)[0], height, width)


def fit_on_white_sharply(picture: np.ndarray, height: int, width: int) -> Tensor:
    """`fit_on_white` by Lanczos with antialias, rounded to 256 levels, as Phantom's authors do.

    Source: Phantom-video/Phantom `load_ref_images`.
    """
    rows, columns = picture.shape[:2]
    ratio = columns / rows
    size = (width, int(width / ratio)) if ratio > width / height else (int(height * ratio), height)
    resized = Image.fromarray(picture).resize((max(1, size[0]), max(1, size[1])), Image.Resampling.LANCZOS)
    return _on_white(torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 127.5 - 1, height, width)


def _on_white(picture: Tensor, height: int, width: int) -> Tensor:
    rows, columns = picture.shape[1:]
    top, left = (height - rows) // 2, (width - columns) // 2
    canvas = torch.ones(3, height, width)
    canvas[:, top : top + rows, left : left + columns] = picture
    return canvas


def fingerprint(pixels: np.ndarray) -> str:
    """A digest of a picture's content and shape."""
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


def clean_prompt(text: str) -> str:
    """Repair the encoding (ftfy), resolve HTML entities, collapse white space: as Wan's own code.

    Half an emoji (a lone surrogate) becomes U+FFFD, which tokenizers accept.
    Source: Wan-Video/Wan2.1 `tokenizers.py`, `basic_clean` and `whitespace_clean`.
    """
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


class WanText:
    """UMT5's embeddings of prompts, zero-padded to `length` tokens."""

    def __init__(self, encoder, tokenizer, length: int) -> None:
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.length = length
        self.cache = Cache()

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> list[Tensor]:
        """Embeddings float32 [length, dim] per prompt, on the CPU; cached by text. Longer texts are cut.

        Raises UserError when an embedding is not finite.
        """
        cleaned = [clean_prompt(p) for p in prompts]
        # One by one: in a batch the last bits depend on the other texts, and after a resume others are missing.
        embedded = self.cache.resolve(cleaned, lambda missing: [self._embed(cleaned[i]) for i in missing])
        return [F.pad(e, (0, 0, 0, self.length - len(e))) for e in embedded]

    def knows(self, prompts: Sequence[str]) -> bool:
        """Whether all these texts are cached, in memory or on disk, so that `encode` does not need the encoder."""
        return all(clean_prompt(p) in self.cache for p in prompts)

    def _embed(self, prompt: str) -> Tensor:
        tokens = self.tokenizer(
            [prompt],
            padding="max_length",
            max_length=self.length,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        ids, mask = tokens.input_ids.to(self.encoder.device), tokens.attention_mask.to(self.encoder.device)
        hidden = self.encoder(ids, attention_mask=mask).last_hidden_state.float().cpu()
        embedding = hidden[0, : int(mask.sum())].clone()
        if not embedding.isfinite().all():
            raise UserError(
                f"the text encoder's embedding of `{prompt[:40]}` is not finite (NaN or infinity); use dtype float32. "
                "If that does not help its weights are damaged: download it again"
            )
        return embedding


class TimeFeatures(nn.Module):
    """cos and sin of timesteps [B] (0..1000) at channels/2 frequencies: float32 [B, channels].

    Frequency k is 10000^(-k / (channels/2)). Computed in float64 as the original Wan code does; diffusers' float32
    angles move the velocity by about 1e-4.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, timesteps: Tensor) -> Tensor:
        exact = timesteps.cpu().double() if timesteps.device.type == "mps" else timesteps.double()
        half = self.channels // 2
        frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=exact.device) / half)
        angles = exact[:, None] * frequencies
        return torch.cat([angles.cos(), angles.sin()], dim=1).float().to(timesteps.device)


def use_exact_time_features(transformer: nn.Module) -> None:
    """Replace the time features of a Wan transformer of diffusers by `TimeFeatures`, in place; they have no weights."""
    transformer.condition_embedder.timesteps_proj = TimeFeatures(transformer.config.freq_dim)


class WanVideoPolicy(Policy):
    """A policy of diffusers' Wan transformer, AutoencoderKLWan, UMT5EncoderModel and its tokenizer.

    `text_len`: number of text tokens that the transformer gets. `vae_pixels`: see `WanVae`.
    """

    fit: Callable[[np.ndarray, int, int], Tensor]
    """Fit a reference image uint8 [h, w, 3] on a canvas (height, width): float32 [3, height, width] in [-1, 1]."""

    def __init__(
        self, transformer, vae, text_encoder, tokenizer, text_len: int = 512, vae_pixels: int | None = None
    ) -> None:
        self.transformer = transformer
        use_exact_time_features(transformer)
        use_patch_products(transformer)
        use_cpu_blocks(transformer)
        self.vae = WanVae(vae, vae_pixels)
        self.text = WanText(text_encoder, tokenizer, text_len)
        self.patch = tuple(transformer.config.patch_size)
        self._dtype = transformer.patch_embedding.weight.dtype
        self._latents = Cache()

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def keep_encodings(self, texts: EncodingStore, latents: EncodingStore) -> None:
        """Keep embeddings of texts, and latents of references, on disk too, and look for them there first."""
        self.text.cache.store, self._latents.store = texts, latents

    def clip_shape(self, size: VideoSize) -> tuple[int, int, int, int]:
        """Shape [z, f, h, w] of the latents of a clip without references."""
        frames = 1 + (size.frames - 1) // self.vae.temporal
        return self.vae.channels, frames, size.height // self.vae.spatial, size.width // self.vae.spatial

    def check_size(self, size: VideoSize) -> None:
        """Raises UserError for a size that is not a whole number of patches and latent frames."""
        steps = [self.vae.spatial * p for p in self.patch[1:]]
        if size.height % steps[0] or size.width % steps[1] or min(size.height, size.width) <= 0:
            raise UserError(
                f"a video of {size.width}x{size.height} cannot be cut into patches; "
                f"use a width that is a multiple of {steps[1]} and a height that is a multiple of {steps[0]}"
            )
        if size.frames < 1 or size.frames % self.vae.temporal != 1:
            raise UserError(f"{size.frames} frames cannot be encoded; use a multiple of {self.vae.temporal}, plus 1")
        limit = self.transformer.config.rope_max_seq_len
        if max(size.height // steps[0], size.width // steps[1], 1 + (size.frames - 1) // self.vae.temporal) > limit:
            raise UserError(
                f"a video of {size.width}x{size.height} with {size.frames} frames has more positions than this model "
                f"knows ({limit} of rows, columns and latent frames each); use a smaller one"
            )

    def encode_references(self, sources: Sequence, size: VideoSize) -> list[Tensor]:
        """Latents [z, 1, h, w] of each reference image, in order, cached by content."""
        pictures = [read_pixels(s) for s in sources]

        def compute(missing: list[int]) -> Tensor:
            # One by one: in a batch the last bits depend on the other pictures, and after a resume others are missing.
            found = [self.fit(pictures[i], size.height, size.width)[None, :, None] for i in missing]
            return torch.cat([self.vae.encode(picture) for picture in found])

        return self._latents.resolve([(fingerprint(p), size.height, size.width) for p in pictures], compute)
