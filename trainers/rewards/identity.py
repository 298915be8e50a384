"""The identity reward: how well the people of a clip match their reference images."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..pictures.reading import Picture, open_picture, read_pixels
from .base_file import TOKENS_PER_SECOND, find_tokenizer, load_base_file
from .checkpoint import merge_weights, read_weights
from .collator import Collator, frame_rates
from .config_files import BaseFile, read_config_file
from .folder import find_base, find_checkpoint
from .model import RewardModel, as_reward, load_base
from .pixels import Grid
from .sequence import Sequencer

CACHED_REFERENCES = 128
"""Reference images whose embeddings are kept."""


class IdentityReward:
    """Scores clips against reference images; a score has no zero, only differences mean something.

    Embeddings of references are cached by content, since one item's references are scored with many clips.
    """

    def __init__(self, model: RewardModel, collator: Collator):
        self.model, self.collator = model.eval(), collator
        self._references: OrderedDict[bytes, tuple[Grid, Tensor]] = OrderedDict()

    @classmethod
    def load(
        cls,
        checkpoint_dir: Path | str,
        base_model: Path | str | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        attention: str | None = None,
    ) -> IdentityReward:
        """Read a reward in the released layout; nothing is downloaded.

        `attention` names transformers' implementation for the language model: by default flash attention where it is
        installed and can run (GPU, half precision), else sdpa. The head is float32 whatever `dtype` is. Raises
        UserError for a folder that is incomplete, damaged or made for another base model.
        """
        checkpoint = find_checkpoint(checkpoint_dir)
        base = find_base(checkpoint, base_model)
        weights = read_weights(checkpoint)
        attention = attention or _attention(torch.device(device), dtype)
        model, sequencer = open_base(base, dtype, attention, (checkpoint.weights, checkpoint.folder))
        merge_weights(model, checkpoint, weights)
        data = checkpoint.config.data
        return cls(model.requires_grad_(False).to(device), Collator(sequencer, data.num_frames, data.max_frame_pixels))

    @property
    def device(self) -> torch.device:
        return self.model.rm_head.weight.device

    def to(self, device: torch.device | str) -> IdentityReward:
        """Move the model and empty the cache of references."""
        self.model.to(device)
        self._references.clear()
        return self

    @torch.no_grad()
    def score(
        self,
        videos: Sequence[Tensor | np.ndarray],
        references: Sequence[Sequence[Picture]],
        fps: float | Sequence[float] = 10.0,
        batch_size: int = 8,
        names: Sequence[str] = (),
    ) -> Tensor:
        """Rewards float32 [B] on the CPU for B clips, each uint8 [F, H, W, 3], and the references of each.

        `fps`, frames per second of all clips or of each, enters the score; 10 is what the released reward's trainer
        wrote into its files. `names` are the clips' names in errors. Raises UserError for a clip without references,
        a reference that cannot be read, and a score that is not finite.
        """
        if len(videos) != len(references):
            raise ValueError(f"{len(videos)} clips but references for {len(references)}")
        names = names or [f"clip {number} of {len(videos)}" for number in range(1, len(videos) + 1)]
        rates = frame_rates(fps, len(videos))
        for name, images in zip(names, references, strict=True):
            if not len(images):
                raise UserError(f"{name} has no reference images; the identity reward needs at least one")
        scores = []
        for start in range(0, len(videos), batch_size):
            part = slice(start, start + batch_size)
            known = self._embed_references(references[part])
            batch = self.collator.batch(
                videos[part],
                [[grid for grid, _ in images] for images in known],
                rates[part],
                self.device,
                embeddings=torch.cat([vectors for images in known for _, vectors in images]),
            )
            scores.append(self.model(batch))
        found = torch.cat(scores).cpu() if scores else torch.empty(0)
        for name, score in zip(names, found.tolist(), strict=True):
            if not math.isfinite(score):
                raise UserError(
                    f"the identity score of {name} is {score}, which is no measurement; load the reward as float32, or "
                    "use another checkpoint"
                )
        return found

    def _embed_references(self, references: Sequence[Sequence[Picture]]) -> list[list[tuple[Grid, Tensor]]]:
        keys = [[_cache_key(r) for r in images] for images in references]
        missing = {
            k: r
            for ks, images in zip(keys, references, strict=True)
            for k, r in zip(ks, images, strict=True)
            if k not in self._references
        }
        # One by one: in a batch the last bits depend on the other pictures, and after a resume others are missing.
        for key, reference in missing.items():
            rows, (grids,) = self.collator.reference_rows([[reference]], self.device)
            self._references[key] = (grids[0], self.model.embed_pictures(rows, grids))
        found = [[self._references[k] for k in ks] for ks in keys]
        for key in (k for ks in keys for k in ks):
            self._references.move_to_end(key)
        while len(self._references) > CACHED_REFERENCES:
            self._references.popitem(last=False)
        return found


def open_base(
    folder: Path, dtype: torch.dtype, attention: str = "sdpa", tokenizers: Sequence[Path] = ()
) -> tuple[RewardModel, Sequencer]:
    """A base model with a new head, and the sequencer of its tokenizer.

    A base model in one file has its tokenizer beside it or in one of the folders `tokenizers`. Raises UserError if it
    is no Qwen2.5-VL.
    """
    from transformers import AutoConfig

    if folder.is_file():
        sequencer = Sequencer.load(find_tokenizer(folder, tokenizers), TOKENS_PER_SECOND)
        loaded = load_base_file(folder, dtype, attention)
        return as_reward(loaded, sequencer.vocabulary, sequencer.image_token, sequencer.video_token), sequencer
    read_config_file(folder / "config.json", BaseFile, "give a Qwen2.5-VL folder as the base model")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokens_per_second = float(config.vision_config.tokens_per_second)
    except Exception as error:  # transformers raises almost anything for a broken file
        raise UserError(f"{folder / 'config.json'} cannot be read ({error}); give a Qwen2.5-VL folder") from error
    sequencer = Sequencer.load(folder, tokens_per_second)
    model = load_base(folder, sequencer.vocabulary, sequencer.image_token, sequencer.video_token, dtype, attention)
    return model, sequencer


def preference_probabilities(
    reward_a: Tensor | float, reward_b: Tensor | float, theta: float = 5.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities that A wins, that they tie and that B wins, which sum to 1: Bradley-Terry with ties.

    `theta` > 1 is how much stronger one must be to win clearly, after Rao and Kupper; the released reward has 5.
    """
    difference = torch.as_tensor(reward_a, dtype=torch.float64) - torch.as_tensor(reward_b, dtype=torch.float64)
    margin = float(np.log(theta))
    win_a, win_b = torch.sigmoid(difference - margin), torch.sigmoid(-difference - margin)
    return win_a, (theta**2 - 1) * win_a * win_b, win_b


def _cache_key(reference: Picture) -> bytes:
    """A key that changes when the picture does."""
    if isinstance(reference, str | Path):
        with open_picture(reference):
            status = Path(reference).stat()
        return f"{Path(reference).resolve()} {status.st_mtime_ns} {status.st_size}".encode()
    # As it is read: pixels alone know neither a palette nor an orientation.
    pixels = read_pixels(reference)
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).digest()


def _attention(device: torch.device, dtype: torch.dtype) -> str:
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16):
        from transformers.utils import is_flash_attn_2_available

        if is_flash_attn_2_available():
            return "flash_attention_2"
    return "sdpa"
