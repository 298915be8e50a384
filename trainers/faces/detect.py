"""Faces in frames: found, and cut out upright for the embedder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .networks import DETECTOR_SIDE, EMBEDDER_SIDE, LANDMARK_SIDE, find_boxes, find_landmarks
from .users import BUILT_IN, Recogniser
from .users import CANONICAL as ARCFACE
from .users import EMBEDDER_SIDE as ARCFACE_SIDE
from .weights import FaceNetworks, load_networks

CONFIDENCE = 0.4  # probability from which a box counts as a face
OVERLAP = 0.6  # intersection over the smaller area from which two boxes are one face
CUT = 0.01  # of a window's side: faces that come so near to its edge are cut
SECOND_SIDE = 300  # pixels of the longer side of a frame that is looked at a second time, smaller
BATCH, FACES = 8, 32  # frames in one forward of the detector, faces in one of the landmark network
# Where eyes and mouth lie in the embedder's square, as parts of its side.
CANONICAL = ((0.317, 0.304), (0.662, 0.304), (0.490, 0.690))
Places = tuple[tuple[float, float], ...]
Window = tuple[int, int, int, int]  # left, top, width, height in pixels of the frame
EYES_AND_MOUTH = (slice(36, 42), slice(42, 48), slice(48, 68))


@dataclass(frozen=True)
class Faces:
    """`n` faces of a clip, in the order of frames and of falling confidence within a frame."""

    frame: Tensor  # [n] index of the frame, on the CPU
    box: Tensor  # [n, 4] x0, y0, x1, y1 in pixels of the frame, on the CPU
    confidence: Tensor  # [n] 0 to 1, on the CPU
    chips: Tensor  # [n, 3, 150, 150] uint8: the face upright, on the device of the networks
    crops: Tensor | None = None  # [n, 3, 112, 112] uint8: the same for a user's own embedder

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def size(self) -> Tensor:
        """[n] side in pixels of the square that has the box's area."""
        sides = self.box[:, 2:] - self.box[:, :2]
        return sides.prod(1).sqrt()


@torch.no_grad()
def detect(
    frames: Tensor,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda frames: None,
    recogniser: Recogniser = BUILT_IN,
) -> Faces:
    """All faces of `frames` (uint8 [F, H, W, 3]), cut out for the built-in embedder and that of `recogniser`.

    `progress` is called with the number of frames done, again and again; an exception that it raises ends the work.
    """
    networks = load_networks(torch.device(device))
    found = []
    for first in range(0, len(frames), BATCH):
        found += _boxes(networks, frames[first : first + BATCH], first, recogniser)
        progress(min(first + BATCH, len(frames)))
    frame, box, confidence = (torch.cat(parts) for parts in zip(*found, strict=True))
    sources = [frames[index] for index in frame.tolist()]
    places = _eyes_and_mouth(networks, sources, box)
    crops = _upright(networks, sources, places, ARCFACE, ARCFACE_SIDE) if recogniser.embedder else None
    chips = _upright(networks, sources, places, CANONICAL, EMBEDDER_SIDE)
    return Faces(frame, box, confidence, chips, crops)


def _boxes(
    networks: FaceNetworks, frames: Tensor, first: int, recogniser: Recogniser
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Frame indices, boxes in pixels and confidences, of one frame after the other."""
    found = recogniser.detector(frames) if recogniser.detector else _built_in(networks, frames)
    for number, (boxes, scores) in enumerate(found):
        kept = _distinct(boxes, scores)
        yield torch.full((len(kept),), first + number), boxes[kept], scores[kept]


def _built_in(networks: FaceNetworks, frames: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Boxes and confidences in all windows of each frame."""
    pictures = _planes(frames, networks.device)
    found = [_in_window(networks, pictures, window, side) for window, side in windows(*pictures.shape[-2:])]
    for parts in zip(*found, strict=True):
        boxes, scores = (torch.cat(part) for part in zip(*parts, strict=True))
        yield boxes, scores


def windows(height: int, width: int) -> list[tuple[Window, int]]:
    """Parts of a frame in which faces are looked for, and the pixels that the longer side of each gets for it.

    The whole frame twice, because the detector has sizes at which it misses a face. A frame that it would have to
    reduce: once, and in squares of the shorter side, which overlap by a quarter of it or more, for small faces.
    """
    whole, side, length = (0, 0, width, height), min(height, width), max(height, width)
    if length <= DETECTOR_SIDE or length < 1.25 * side:
        return [(whole, DETECTOR_SIDE), (whole, SECOND_SIDE)]
    count = 1 + math.ceil((length - side) / (0.75 * side))
    starts = [round(index * (length - side) / (count - 1)) for index in range(count)]
    squares = [(start, 0, side, side) if width > height else (0, start, side, side) for start in starts]
    return [(window, DETECTOR_SIDE) for window in (whole, *squares)]


def _in_window(networks: FaceNetworks, pictures: Tensor, window: Window, target: int) -> list[tuple[Tensor, Tensor]]:
    """Boxes in pixels of the frame and confidences, for each of the pictures [N, 3, H, W].

    The longer side of the window becomes `target` pixels.
    """
    left, top, width, height = window
    part, side = pictures[:, :, top : top + height, left : left + width], max(height, width)
    fitted = [max(1, round(length * target / side)) for length in (height, width)]
    pixel = side / target
    part = F.interpolate(part, fitted, mode="bilinear", antialias=True, align_corners=False)
    part = F.pad(part, (0, DETECTOR_SIDE - fitted[1], 0, DETECTOR_SIDE - fitted[0]))
    boxes, scores = (found.cpu() for found in find_boxes(networks.detector, part))
    limits = boxes.new_tensor([width, height, width, height])
    # A face cut by an edge that is not the frame's is seen better from the next window.
    low = boxes.new_tensor([left > 0, top > 0]) * CUT * side
    high = (
        limits[2:] - boxes.new_tensor([left + width < pictures.shape[3], top + height < pictures.shape[2]]) * CUT * side
    )
    found = []
    for candidates, probability in zip(boxes * DETECTOR_SIDE * pixel, scores, strict=True):
        candidates = candidates.clamp(min=0).minimum(limits)
        whole = (candidates[:, :2] >= low).all(1) & (candidates[:, 2:] <= high).all(1)
        likely = (probability > CONFIDENCE) & whole
        found.append((candidates[likely] + candidates.new_tensor([left, top] * 2), probability[likely]))
    return found


def _planes(frames: Tensor, device: torch.device) -> Tensor:
    """uint8 [F, H, W, 3] as float32 [F, 3, H, W] on the device."""
    return frames.to(device).permute(0, 3, 1, 2).float()


def _distinct(boxes: Tensor, scores: Tensor) -> list[int]:
    """Indices of the boxes that cover no better one and are covered by none, by falling score."""
    kept: list[int] = []
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    overlaps = _shared(boxes, boxes) / torch.minimum(areas[:, None], areas[None]).clamp(min=1e-9)
    for index in scores.argsort(descending=True, stable=True).tolist():
        if not kept or overlaps[index, kept].max() < OVERLAP:
            kept.append(index)
    return kept


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union [n, m] of boxes [n, 4] and [m, 4]."""
    shared = _shared(first, second)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    return shared / (areas[0][:, None] + areas[1][None] - shared).clamp(min=1e-9)


def _shared(first: Tensor, second: Tensor) -> Tensor:
    start = torch.maximum(first[:, None, :2], second[None, :, :2])
    end = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    return (end - start).clamp(min=0).prod(2)


def cut_chips(networks: FaceNetworks, frames: list[Tensor], boxes: Tensor) -> Tensor:
    """The faces of boxes upright, uint8 [n, 3, 150, 150]: eyes and mouth where the embedder was trained to see them.

    `frames`: the frame (uint8 [H, W, 3]) of each box.
    """
    return _upright(networks, frames, _eyes_and_mouth(networks, frames, boxes), CANONICAL, EMBEDDER_SIDE)


def _eyes_and_mouth(networks: FaceNetworks, frames: list[Tensor], boxes: Tensor) -> Tensor:
    """[n, 3, 2] the middles of both eyes and of the mouth, in pixels, on the CPU."""
    middles = [torch.zeros(0, 3, 2)]
    for first in range(0, len(boxes), FACES):
        part = slice(first, first + FACES)
        side = (boxes[part, 2:] - boxes[part, :2]).amax(1)
        corner = (boxes[part, :2] + boxes[part, 2:] - side[:, None]) / 2
        squares = torch.cat([torch.eye(2) * side[:, None, None], corner[:, :, None]], 2)
        cut = [
            _cut(frame, place, LANDMARK_SIDE, networks.device)
            for frame, place in zip(frames[part], squares, strict=True)
        ]
        points = find_landmarks(networks.landmarks, torch.stack(cut)).cpu() * side[:, None, None] + corner[:, None]
        middles.append(torch.stack([points[:, group].mean(1) for group in EYES_AND_MOUTH], 1))
    return torch.cat(middles)


def _upright(networks: FaceNetworks, frames: list[Tensor], places: Tensor, canonical: Places, side: int) -> Tensor:
    """uint8 [n, 3, side, side]: faces with eyes and mouth (`places` [n, 3, 2] in pixels) brought to `canonical`."""
    chips = [torch.zeros(0, 3, side, side, dtype=torch.uint8, device=networks.device)]
    for frame, three in zip(frames, places, strict=True):
        cut = _cut(frame, _similarity(three, canonical), side, networks.device)
        chips.append(cut.round().clamp(0, 255).byte()[None])
    return torch.cat(chips)


def _similarity(points: Tensor, canonical: Places) -> Tensor:
    """The map [2, 3] from the unit square to the frame that brings `canonical` nearest to `points` ([3, 2], pixels)."""
    canonical = points.new_tensor(canonical)
    source, target = canonical - canonical.mean(0), points - points.mean(0)
    norm = (source**2).sum()
    cosine = (source * target).sum() / norm
    sine = (source[:, 0] * target[:, 1] - source[:, 1] * target[:, 0]).sum() / norm
    turn = torch.stack([torch.stack([cosine, -sine]), torch.stack([sine, cosine])])
    return torch.cat([turn, (points.mean(0) - turn @ canonical.mean(0))[:, None]], 1)


def _cut(frame: Tensor, place: Tensor, side: int, device: torch.device) -> Tensor:
    """The part of a frame that `place` (a map [2, 3] from the unit square, pixels) covers: float32 [3, side, side].

    Black beyond the frame's edge. Where it is reduced, each number is a mean over several samples, against aliasing.
    """
    fine = max(1, int((place[0, 0] ** 2 + place[1, 0] ** 2).sqrt().item() / side + 0.5))
    steps = (torch.arange(side * fine) + 0.5) / (side * fine)
    grid = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1) @ place[:, :2].T + place[:, 2]
    low = (grid.amin((0, 1)).floor().int() - 1).tolist()
    high = (grid.amax((0, 1)).ceil().int() + 2).tolist()
    left, top = max(0, low[0]), max(0, low[1])
    part = frame[top : max(top + 1, high[1]), left : max(left + 1, high[0])]
    part = _planes(part[None], device)
    extent = grid.new_tensor([part.shape[-1], part.shape[-2]])
    grid = ((grid - grid.new_tensor([left, top])) / extent * 2 - 1)[None].to(device)
    return F.avg_pool2d(F.grid_sample(part, grid, padding_mode="zeros", align_corners=False), fine)[0]
