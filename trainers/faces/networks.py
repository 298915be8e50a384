"""The three networks of face-api as functions of their weights: detector, landmarks, embedder.

Source: the architectures of @vladmandic/face-api 1.7.15 (MIT): an SSD on MobileNetV1 for faces, a small dense network
for 68 landmarks, and the ResNet of dlib's face recognition (CC0) for 128 numbers per face. Weights: `weights.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]

DETECTOR_SIDE, LANDMARK_SIDE, EMBEDDER_SIDE = 512, 112, 150  # pixels of each network's square input
LANDMARKS, NUMBERS = 68, 128
MEAN = (122.782, 117.001, 104.298)  # of RGB, as the landmark network and the embedder were trained
BATCH_NORM_EPSILON = 0.0010000000474974513
HALVING = {2, 4, 6, 12}  # blocks of the detector that halve the resolution
BOX_SCALE = (10.0, 10.0, 5.0, 5.0)  # by which the detector's offsets (y, x, height, width) are divided


def find_boxes(weights: Weights, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Candidate boxes and their probabilities of being a face.

    `pictures`: [N, 3, 512, 512], 0 to 255. Returns boxes [N, 5118, 4] (x0, y0, x1, y1 as parts of the side) and
    probabilities [N, 5118].
    """
    x = _clipped(_conv(pictures / 127.5 - 1, weights, "backbone.0", 2))
    for block in range(1, 14):
        x = _depthwise_block(x, weights, f"backbone.{block}", 2 if block in HALVING else 1)
        if block == 11:
            wide = x
    levels = [wide, x]
    for extra in range(8):
        x = _clipped(_conv(x, weights, f"extra.{extra}", 1 + extra % 2))
        if extra % 2:
            levels.append(x)
    offsets, scores = [], []
    for number, level in enumerate(levels):
        offsets.append(_per_anchor(_conv(level, weights, f"boxes.{number}"), 4))
        scores.append(_per_anchor(_conv(level, weights, f"classes.{number}"), 3)[..., 1])
    return _decoded(torch.cat(offsets, 1), weights["anchors"]), torch.cat(scores, 1).sigmoid()


def find_landmarks(weights: Weights, faces: Tensor) -> Tensor:
    """68 landmarks [N, 68, 2] (x, y as parts of the side) of faces [N, 3, 112, 112], 0 to 255."""
    x = _normalised(faces)
    for block in range(4):
        x = _dense_block(x, weights, f"dense.{block}", first=block == 0)
    x = F.avg_pool2d(x, 7, 2).flatten(1)
    return (x @ weights["fc.weight"] + weights["fc.bias"]).unflatten(1, (LANDMARKS, 2))


def embed_chips(weights: Weights, chips: Tensor) -> Tensor:
    """128 numbers [N, 128] of aligned faces [N, 3, 150, 150], 0 to 255. Near faces are of one person (Euclidean)."""
    x = F.relu(_valid(_normalised(chips), weights, "stem", 2))
    x = F.max_pool2d(x, 3, 2)
    for width, blocks, halves in ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True)):
        for block in range(blocks):
            x = _residual(x, weights, f"{width}.{block}", halves and block == 0)
    return _residual(x, weights, "last", True).mean((2, 3)) @ weights["fc"]


def _decoded(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (x0, y0, x1, y1) from the anchors (y0, x0, y1, x1) and the network's offsets to them."""
    size, start = anchors[:, 2:] - anchors[:, :2], anchors[:, :2]
    offsets = offsets / offsets.new_tensor(BOX_SCALE)
    centre = offsets[..., :2] * size + start + size / 2
    half = offsets[..., 2:].exp() * size / 2
    return torch.cat([(centre - half).flip(-1), (centre + half).flip(-1)], -1)


def _per_anchor(x: Tensor, numbers: int) -> Tensor:
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, numbers)


def _normalised(pictures: Tensor) -> Tensor:
    return (pictures - pictures.new_tensor(MEAN)[:, None, None]) / 255


def _same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Zero padding as TensorFlow's "same": where it is uneven, the larger part is below and to the right."""
    total = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]]
    above, left = total[0] // 2, total[1] // 2
    return F.pad(x, (left, total[1] - left, above, total[0] - above))


def _conv(x: Tensor, weights: Weights, name: str, stride: int = 1) -> Tensor:
    weight = weights[f"{name}.weight"]
    return F.conv2d(_same(x, weight.shape[-1], stride), weight, weights[f"{name}.bias"], stride)


def _valid(x: Tensor, weights: Weights, name: str, stride: int) -> Tensor:
    return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride)


def _clipped(x: Tensor) -> Tensor:
    return F.relu6(x)


def _depthwise_block(x: Tensor, weights: Weights, name: str, stride: int) -> Tensor:
    weight = weights[f"{name}.depthwise.weight"]
    x = F.conv2d(_same(x, 3, stride), weight, weights[f"{name}.depthwise.bias"], stride, groups=len(weight))
    return _clipped(_conv(_clipped(x), weights, name))


def _dense_block(x: Tensor, weights: Weights, name: str, first: bool) -> Tensor:
    def separable(x: Tensor, layer: int, stride: int) -> Tensor:
        depthwise = weights[f"{name}.{layer}.depthwise"]
        x = F.conv2d(_same(x, 3, stride), depthwise, None, stride, groups=len(depthwise))
        return _conv(x, weights, f"{name}.{layer}")

    total = F.relu(_conv(x, weights, f"{name}.0", 2) if first else separable(x, 0, 2))
    for layer in (1, 2, 3):
        total = total + separable(F.relu(total), layer, 1)
    return F.relu(total)


def _residual(x: Tensor, weights: Weights, name: str, halves: bool) -> Tensor:
    first = _valid(x, weights, f"{name}.0", 2) if halves else _conv(x, weights, f"{name}.0")
    out = _conv(F.relu(first), weights, f"{name}.1")
    if halves:
        # The shortcut has fewer channels, and its pooling may keep one row and column more: both are filled with zeros.
        x = F.avg_pool2d(x, 2)
        out = F.pad(out, (0, x.shape[-1] - out.shape[-1], 0, x.shape[-2] - out.shape[-2]))
        x = F.pad(x, (0, 0, 0, 0, 0, out.shape[1] - x.shape[1]))
    return F.relu(out + x)
