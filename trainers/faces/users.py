"""A user's own networks for faces: ONNX files as InsightFace has them, a detector (SCRFD) and an embedder (ArcFace).

They are run by the package `onnxruntime` and never come with this code: InsightFace's are for non-commercial use only.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError

EMBEDDER_SIDE = 112
# Where ArcFace's training pictures have the eyes and the middle of the mouth, as parts of the side.
CANONICAL = ((0.34192, 0.46157), (0.65653, 0.45983), (0.50125, 0.82397))
# Half the distance of unit vectors: 0.6 is then a cosine of 0.28, the usual threshold of ArcFace, and 0.4 one of 0.68.
SCALE = 0.5
DETECTOR_SIDE, STRIDES, ANCHORS = 640, (8, 16, 32), 2
CONFIDENCE = 0.5
BATCH = 32
INSTALL = "the package onnxruntime is not installed; run `pip install onnxruntime`, or leave the built-in networks"
DETECTOR_KIND = "a face detector such as InsightFace's det_10g.onnx"
EMBEDDER_KIND = "a face embedder such as InsightFace's w600k_r50.onnx"


@dataclass(frozen=True)
class Recogniser:
    """What finds faces and what compares them; None is the built-in network."""

    detector: OnnxDetector | None = None
    embedder: OnnxEmbedder | None = None

    @property
    def licence_note(self) -> str:
        """What to know of the licence; empty for the built-in networks."""
        return licence_note(*(used.path for used in (self.detector, self.embedder) if used is not None))


def licence_note(*files: str | Path) -> str:
    """What to know of the licence of these ONNX files; empty for none."""
    names = " and ".join(dict.fromkeys(Path(file).name for file in files))
    return f"{names}: not part of this pack. InsightFace's models are for non-commercial use only" if names else ""


BUILT_IN = Recogniser()


def load_recogniser(detector: str | Path | None, embedder: str | Path | None) -> Recogniser:
    """The networks of these files. Raises UserError for a file that is missing or something else."""
    return Recogniser(detector and OnnxDetector(Path(detector)), embedder and OnnxEmbedder(Path(embedder)))


class _Network(ABC):
    """An ONNX file, read at once and refused if it has another interface."""

    kind: str

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            import onnxruntime
        except ImportError:
            raise UserError(f"{path.name}: {INSTALL}") from None
        if not os.path.isfile(path):
            raise UserError(f"there is no file {path}; give {self.kind}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        known = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in known]
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime has exceptions of its own for everything that is wrong with a file
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} cannot be read as an ONNX model ({reason}); give {self.kind}") from error
        inputs = self.session.get_inputs()
        shape = inputs[0].shape if len(inputs) == 1 else []
        if len(shape) != 4 or shape[1] != 3 or inputs[0].type != "tensor(float)" or not self._fits(shape):
            raise UserError(f"{path} takes {[i.shape for i in inputs]}, which is not {self.kind}")
        self.input, self.shape = inputs[0].name, shape

    @abstractmethod
    def _fits(self, shape: Sequence[Any]) -> bool:
        """Whether the network takes pictures [N, 3, H, W] as this kind does."""

    def run(self, pictures: Tensor) -> list[np.ndarray]:
        return self.session.run(None, {self.input: pictures.cpu().numpy()})


class OnnxEmbedder(_Network):
    """An embedder with ArcFace's interface: faces of 112x112 in, a vector each out."""

    kind = EMBEDDER_KIND

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        outputs = self.session.get_outputs()
        if len(outputs) != 1 or len(outputs[0].shape) != 2 or not isinstance(outputs[0].shape[1], int):
            raise UserError(f"{path} gives {[o.shape for o in outputs]}, which is not {self.kind}")
        self.numbers: int = outputs[0].shape[1]

    def _fits(self, shape: Sequence[Any]) -> bool:
        return all(not isinstance(side, int) or side == EMBEDDER_SIDE for side in shape[2:])

    def __call__(self, crops: Tensor) -> Tensor:
        """float32 [n, numbers] on the CPU, of norm SCALE, for upright faces uint8 [n, 3, 112, 112] (RGB)."""
        size = self.shape[0] if isinstance(self.shape[0], int) else BATCH
        found = [torch.zeros(0, self.numbers)]
        for part in crops.split(size):
            # A file made for batches of one size takes no others.
            filled = F.pad(part.float(), (0, 0) * 3 + (0, size - len(part))) if size != BATCH else part.float()
            vectors = torch.from_numpy(self.run((filled - 127.5) / 127.5)[0])[: len(part)]
            found.append(F.normalize(vectors.float(), dim=1) * SCALE)
        return torch.cat(found)


class OnnxDetector(_Network):
    """A detector with SCRFD's interface: scores and boxes on grids of 8, 16 and 32 pixels, two of each place."""

    kind = DETECTOR_KIND

    def _fits(self, shape: Sequence[Any]) -> bool:
        single = not isinstance(shape[0], int) or shape[0] == 1
        return single and len(self.session.get_outputs()) in (6, 9)

    @cached_property
    def side(self) -> int:
        """Pixels of the square that a frame is fitted into."""
        return self.shape[2] if isinstance(self.shape[2], int) else DETECTOR_SIDE

    def __call__(self, frames: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Boxes [n, 4] (x0, y0, x1, y1 in pixels) and confidences [n] of each frame, uint8 [F, H, W, 3]."""
        for frame in frames:
            planes = frame.permute(2, 0, 1)[None].float()
            height, width = planes.shape[-2:]
            scale = self.side / max(height, width)
            fitted = [max(1, round(length * scale)) for length in (height, width)]
            planes = F.interpolate(planes, fitted, mode="bilinear", antialias=True, align_corners=False)
            planes = F.pad(planes, (0, self.side - fitted[1], 0, self.side - fitted[0]))
            boxes, scores = self._decoded(self.run((planes - 127.5) / 128))
            limits = boxes.new_tensor([width, height, width, height])
            yield (boxes / scale).clamp(min=0).minimum(limits), scores

    def _decoded(self, outputs: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        def of(numbers: int) -> list[Tensor]:
            kept = [torch.from_numpy(o).float().reshape(-1, numbers) for o in outputs if o.shape[-1] == numbers]
            return sorted(kept, key=len, reverse=True)

        boxes, scores = [], []
        for stride, score, offset in zip(STRIDES, of(1), of(4), strict=True):
            cells = self.side // stride
            if len(score) != cells**2 * ANCHORS or len(offset) != len(score):
                raise UserError(f"{self.path} has {len(score)} places of {stride} pixels, which is not {self.kind}")
            steps = torch.arange(cells) * stride
            middle = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).reshape(-1, 1, 2)
            middle = middle.expand(-1, ANCHORS, -1).reshape(-1, 2)
            likely = score[:, 0] > CONFIDENCE
            reach = offset[likely] * stride
            boxes.append(torch.cat([middle[likely] - reach[:, :2], middle[likely] + reach[:, 2:]], 1))
            scores.append(score[likely, 0])
        return torch.cat(boxes), torch.cat(scores)
