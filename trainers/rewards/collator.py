"""Batches of clips and reference images for the reward model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from ..pictures.reading import Picture
from .geometry import MAX_PIXELS, frame_count, frame_indices, seconds_per_step
from .model import Batch
from .pixels import Grid, clip_rows, image_rows, reference_pixels
from .sequence import Sequencer


class Collator:
    """Turns clips and reference images into batches, with the frame count and largest size of a reward."""

    def __init__(self, sequencer: Sequencer, frames: float = 5.0, max_pixels: int = MAX_PIXELS):
        self.sequencer, self.frames, self.max_pixels = sequencer, frame_count(frames), max_pixels

    def select_frames(self, video: Tensor | np.ndarray) -> Tensor:
        """The frames that the reward reads: uint8 [frames, H, W, 3] of a clip uint8 [F, H, W, 3].

        Raises ValueError for a clip of another type or shape, or without frames.
        """
        kind, shape = str(video.dtype).removeprefix("torch."), list(video.shape)
        if kind != "uint8" or len(shape) != 4 or shape[-1] != 3 or not shape[0]:
            raise ValueError(f"a clip must be uint8 [F, H, W, 3] with F >= 1, got {kind} {shape}")
        frames = video if len(video) == self.frames else video[frame_indices(len(video), self.frames)]
        return frames if isinstance(frames, Tensor) else torch.from_numpy(np.ascontiguousarray(frames))

    def batch(
        self,
        videos: Sequence[Tensor | np.ndarray],
        image_grids: Sequence[Sequence[Grid]],
        fps: Sequence[float],
        device: torch.device | str,
        rows: Tensor | None = None,
        embeddings: Tensor | None = None,
    ) -> Batch:
        """A batch on `device` of clips and of references given by their grids and their `rows` or `embeddings`.

        Frames are resized and normalised on `device`; the clips may be on any.
        """
        video_rows, video_grids = clip_rows([self.select_frames(v).to(device) for v in videos], self.max_pixels)
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
        """A batch on `device` that holds the references' pixels; clips uint8 [F, H, W, 3]."""
        rows, grids = self.reference_rows(references, device)
        return self.batch(videos, grids, frame_rates(fps, len(videos)), device, rows=rows)

    def reference_rows(
        self, references: Sequence[Sequence[Picture]], device: torch.device | str
    ) -> tuple[Tensor, list[list[Grid]]]:
        """Patch rows of all references on `device`, and the grids of each item's references."""
        pixels = [reference_pixels(r, self.max_pixels).to(device) for images in references for r in images]
        rows, grids = image_rows(pixels)
        remaining = iter(grids)
        return rows, [list(islice(remaining, len(images))) for images in references]


def frame_rates(fps: float | Sequence[float], count: int) -> list[float]:
    """Frames per second of each of `count` clips, from one number for all or one for each."""
    return list(fps) if isinstance(fps, Sequence) else [float(fps)] * count
