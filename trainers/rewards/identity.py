"""The identity reward: how well the people of a clip match their reference images."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..pictures.reading import Picture
from .checkpoint import find_base, find_checkpoint, read_weights
from .geometry import MAX_PIXELS, frame_count, frame_indices, seconds_per_step
from .model import Batch, RewardModel, load_base
from .pixels import MERGE, Grid, clip_rows, image_rows, reference_pixels
from .sequence import Sequencer

CACHED_REFERENCES = 128


class Collator:
    """Turns clips and references into batches; holds what the released configuration fixes."""

    def __init__(self, sequencer: Sequencer, frames: float = 5.0, max_pixels: int = MAX_PIXELS):
        self.sequencer, self.frames, self.max_pixels = sequencer, frame_count(frames), max_pixels

    def choose_frames(self, video: Tensor | np.ndarray) -> Tensor:
        """The frames that are looked at: uint8 [frames, H, W, 3] of a clip uint8 [F, H, W, 3], F >= 1."""
        if not isinstance(video, Tensor):
            video = torch.from_numpy(np.ascontiguousarray(video))
        if video.dtype != torch.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not len(video):
            raise ValueError(f"a clip must be uint8 [F, H, W, 3] with F >= 1, got {video.dtype} {list(video.shape)}")
        return video if len(video) == self.frames else video[frame_indices(len(video), self.frames)]

    def batch(
        self,
        videos: Sequence[Tensor | np.ndarray],
        image_grids: Sequence[Sequence[Grid]],
        fps: Sequence[float],
        device: torch.device | str,
        rows: Tensor | None = None,
        embeddings: Tensor | None = None,
    ) -> Batch:
        """A batch on `device` of clips whose references have the given grids, with their `rows` or their `embeddings`.

        Frames are resized and normalised on `device`, wherever the clips lie.
        """
        video_rows, video_grids = clip_rows([self.choose_frames(v).to(device) for v in videos], self.max_pixels)
        sequences = [
            self.sequencer.build(tuple(grids), video_grid, seconds_per_step(len(video), rate, self.frames))
            for grids, video_grid, video, rate in zip(image_grids, video_grids, videos, fps, strict=True)
        ]
        length = max(len(s.ids) for s in sequences)
        ids = torch.full((len(sequences), length), self.sequencer.padding)
        positions = torch.zeros(3, len(sequences), length, dtype=torch.int64)
        for i, sequence in enumerate(sequences):
            ids[i, : len(sequence.ids)] = sequence.ids
            positions[:, i, : len(sequence.ids)] = sequence.positions
        return Batch(
            ids,
            positions,
            torch.tensor([s.reward_index for s in sequences]),
            video_rows,
            video_grids,
            rows,
            [grid for grids in image_grids for grid in grids],
            embeddings,
        ).to(device)

    def collate(
        self,
        videos: Sequence[Tensor | np.ndarray],
        references: Sequence[Sequence[Picture]],
        fps: float | Sequence[float],
        device: torch.device | str = "cpu",
    ) -> Batch:
        """A batch on `device` with the references' pixels in it; clips uint8 [F, H, W, 3]."""
        rows, grids = self.reference_rows(references, device)
        return self.batch(videos, grids, _rates(fps, len(videos)), device, rows=rows)

    def reference_rows(
        self, references: Sequence[Sequence[Picture]], device: torch.device | str
    ) -> tuple[Tensor, list[list[Grid]]]:
        """Patch rows of all references on `device`, and the grids of each item's."""
        pixels = [reference_pixels(r, self.max_pixels).to(device) for images in references for r in images]
        rows, grids = image_rows(pixels)
        remaining = iter(grids)
        return rows, [list(islice(remaining, len(images))) for images in references]


class IdentityReward:
    """Scores clips against reference images; a score has no zero, only differences mean something.

    References are embedded once and remembered by content, since one item's references are scored with many clips.
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
        installed and can run (GPU, half precision), else sdpa. The head is float32 whatever `dtype` is. Raises UserError
        for a folder that is incomplete, damaged or made for another base model.
        """
        checkpoint = find_checkpoint(checkpoint_dir)
        base = find_base(checkpoint, base_model)
        attention = attention or _attention(torch.device(device), dtype)
        model, sequencer = open_base(base, dtype, attention)
        read_weights(model, checkpoint)
        return cls(
            model.requires_grad_(False).to(device), Collator(sequencer, checkpoint.frames, checkpoint.max_pixels)
        )

    @property
    def device(self) -> torch.device:
        return self.model.rm_head.weight.device

    def to(self, device: torch.device | str) -> IdentityReward:
        """Move the model; what is remembered of references is dropped."""
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
    ) -> Tensor:
        """Rewards float32 [B] on the CPU for B clips, each uint8 [F, H, W, 3], and the references of each.

        `fps`, frames per second of all clips or of each, enters the score; 10 is what the released reward's trainer wrote
        into its files. Raises UserError for a clip without references or a reference that cannot be read.
        """
        if len(videos) != len(references):
            raise ValueError(f"{len(videos)} clips but references for {len(references)}")
        rates = _rates(fps, len(videos))
        scores = []
        for start in range(0, len(videos), batch_size):
            part = slice(start, start + batch_size)
            known = self._embed_references([list(images) for images in references[part]])
            batch = self.collator.batch(
                videos[part],
                [[grid for grid, _ in images] for images in known],
                rates[part],
                self.device,
                embeddings=torch.cat([vectors for images in known for _, vectors in images]),
            )
            scores.append(self.model(batch))
        return torch.cat(scores).cpu() if scores else torch.empty(0)

    def _embed_references(self, references: list[list[Picture]]) -> list[list[tuple[Grid, Tensor]]]:
        if any(not images for images in references):
            raise UserError("A clip came without reference images: the identity reward needs at least one.")
        keys = [[_content(r) for r in images] for images in references]
        missing = {
            k: r
            for ks, images in zip(keys, references, strict=True)
            for k, r in zip(ks, images, strict=True)
            if k not in self._references
        }
        if missing:
            rows, (grids,) = self.collator.reference_rows([list(missing.values())], self.device)
            vectors = self.model.embed_pictures(rows, grids)
            sizes = [t * h * w // MERGE**2 for t, h, w in grids]
            for key, grid, part in zip(missing, grids, vectors.split(sizes), strict=True):
                self._references[key] = (grid, part.clone())
        found = [[self._references[k] for k in ks] for ks in keys]
        for key in (k for ks in keys for k in ks):
            self._references.move_to_end(key)
        while len(self._references) > CACHED_REFERENCES:
            self._references.popitem(last=False)
        return found


def open_base(folder: Path, dtype: torch.dtype, attention: str = "sdpa") -> tuple[RewardModel, Sequencer]:
    """A base model with a new head, and the sequencer of its tokenizer."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"The base model in {folder} cannot be read ({error}): give a Qwen2.5-VL folder.") from None
    if config.model_type != "qwen2_5_vl":
        raise UserError(f"The base model in {folder} is a {config.model_type}: identity rewards stand on Qwen2.5-VL.")
    sequencer = Sequencer.load(folder, config.vision_config.tokens_per_second)
    model = load_base(folder, sequencer.vocabulary, sequencer.image_token, sequencer.video_token, dtype, attention)
    return model, sequencer


def preference_probabilities(
    reward_a: Tensor | float, reward_b: Tensor | float, theta: float = 5.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities that A wins, that they tie, and that B wins: Bradley-Terry with ties (Rao and Kupper), summing to 1.

    `theta` > 1 is how much stronger one must be to win clearly; the released reward was trained with 5.
    """
    difference = torch.as_tensor(reward_a, dtype=torch.float64) - torch.as_tensor(reward_b, dtype=torch.float64)
    margin = float(np.log(theta))
    win_a, win_b = torch.sigmoid(difference - margin), torch.sigmoid(-difference - margin)
    return win_a, (theta**2 - 1) * win_a * win_b, win_b


def _rates(fps: float | Sequence[float], count: int) -> list[float]:
    return list(fps) if isinstance(fps, Sequence) else [float(fps)] * count


def _content(reference: Picture) -> bytes:
    """A key that changes when the picture does."""
    if isinstance(reference, str | Path):
        try:
            status = Path(reference).stat()
        except OSError:
            raise UserError(f"Picture image {reference} does not exist: check the path.") from None
        return f"{Path(reference).resolve()} {status.st_mtime_ns} {status.st_size}".encode()
    if isinstance(reference, Image.Image):
        pixels, kind = reference.tobytes(), f"{reference.mode} {reference.size} {sorted(reference.info)}"
    else:
        array = reference.cpu().numpy() if isinstance(reference, Tensor) else np.asarray(reference)
        pixels, kind = array.tobytes(), f"{array.dtype} {array.shape}"
    return hashlib.sha256(kind.encode() + pixels).digest()


def _attention(device: torch.device, dtype: torch.dtype) -> str:
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16):
        from transformers.utils import is_flash_attn_2_available

        if is_flash_attn_2_available():
            return "flash_attention_2"
    return "sdpa"
