"""The committed weights of the face networks: read, brought from 8 bits to float32, and put on a device."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from .networks import BATCH_NORM_EPSILON, Weights

FILE = Path(__file__).parent / "weights" / "faces.safetensors"
SCALES = "scales"  # key of the file's metadata: scale and minimum of every tensor of 8 bits


@dataclass(frozen=True)
class FaceNetworks:
    """Weights of the three networks on one device, as `networks` names them."""

    detector: Weights
    landmarks: Weights
    embedder: Weights
    device: torch.device


def load_networks(device: torch.device) -> FaceNetworks:
    """The networks on a device: 50 MB of float32, read once per process and device."""
    return _networks_on(torch.empty(0, device=device).device)  # `cuda` and `cuda:0` may be one device


@cache
def _networks_on(device: torch.device) -> FaceNetworks:
    with safe_open(FILE, "pt") as file:
        scales = json.loads(file.metadata()[SCALES])
        found = {name: _unpacked(file.get_tensor(name), *scales.get(name, ())) for name in file.keys()}  # noqa: SIM118
    parts = (_detector(found), _landmarks(found), _embedder(found))
    return FaceNetworks(*({n: t.to(device).contiguous() for n, t in part.items()} for part in parts), device)


def release_networks() -> None:
    """Free the networks of every device; the next use reads them again."""
    _networks_on.cache_clear()


def _unpacked(tensor: Tensor, scale: float = 1.0, least: float = 0.0) -> Tensor:
    return tensor.float() * scale + least


def _filters(tensor: Tensor) -> Tensor:
    """TensorFlow's [height, width, in, out] as PyTorch's [out, in, height, width]."""
    return tensor.permute(3, 2, 0, 1)


def _depthwise(tensor: Tensor) -> Tensor:
    """TensorFlow's [height, width, channels, 1] as PyTorch's [channels, 1, height, width]."""
    return tensor.permute(2, 3, 0, 1)


def _detector(found: Weights) -> Weights:
    """Batch normalisation is a part of the filters."""
    parts = {"anchors": found["detector/Output/extra_dim"][0]}

    def pointwise(name: str, source: str) -> None:
        parts[f"{name}.weight"] = _filters(found[f"detector/{source}/weights"])
        parts[f"{name}.bias"] = found[f"detector/{source}/convolution_bn_offset"]

    for block in range(14):
        pointwise(f"backbone.{block}", f"MobilenetV1/Conv2d_{block}_pointwise")
        if block:
            source = f"detector/MobilenetV1/Conv2d_{block}_depthwise"
            norm = {n: found[f"{source}/BatchNorm/{n}"] for n in ("gamma", "beta", "moving_mean", "moving_variance")}
            factor = norm["gamma"] / (norm["moving_variance"] + BATCH_NORM_EPSILON).sqrt()
            weight = _depthwise(found[f"{source}/depthwise_weights"])
            parts[f"backbone.{block}.depthwise.weight"] = weight * factor[:, None, None, None]
            parts[f"backbone.{block}.depthwise.bias"] = norm["beta"] - norm["moving_mean"] * factor
    for extra in range(8):
        pointwise(f"extra.{extra}", f"Prediction/Conv2d_{extra}_pointwise")
    for level in range(6):
        for name, source in (("boxes", "BoxEncodingPredictor"), ("classes", "ClassPredictor")):
            start = f"detector/Prediction/BoxPredictor_{level}/{source}"
            parts[f"{name}.{level}.weight"] = _filters(found[f"{start}/weights"])
            parts[f"{name}.{level}.bias"] = found[f"{start}/biases"]
    return parts


def _landmarks(found: Weights) -> Weights:
    parts = {"fc.weight": found["landmarks/fc/weights"], "fc.bias": found["landmarks/fc/bias"]}
    for block in range(4):
        for layer in range(4):
            source, name = f"landmarks/dense{block}/conv{layer}", f"dense.{block}.{layer}"
            parts[f"{name}.bias"] = found[f"{source}/bias"]
            if f"{source}/filters" in found:
                parts[f"{name}.weight"] = _filters(found[f"{source}/filters"])
            else:
                parts[f"{name}.weight"] = _filters(found[f"{source}/pointwise_filter"])
                parts[f"{name}.depthwise"] = _depthwise(found[f"{source}/depthwise_filter"])
    return parts


def _embedder(found: Weights) -> Weights:
    """The scale after each convolution is a part of its filters."""
    parts = {"fc": found["embedder/fc"]}

    def scaled(name: str, source: str) -> None:
        scale = found[f"embedder/{source}/scale/weights"]
        parts[f"{name}.weight"] = _filters(found[f"embedder/{source}/conv/filters"]) * scale[:, None, None, None]
        shift = found[f"embedder/{source}/scale/biases"]
        parts[f"{name}.bias"] = found[f"embedder/{source}/conv/bias"] * scale + shift

    scaled("stem", "conv32_down")
    for layer in (0, 1):
        scaled(f"last.{layer}", f"conv256_down_out/conv{layer + 1}")
        for width, blocks in ((32, 3), (64, 4), (128, 3), (256, 3)):
            names = [f"{width}_{i}" for i in range(1, blocks + 1)] if width == 32 else None
            names = names or [f"{width}_down", *(f"{width}_{i}" for i in range(1, blocks))]
            for block, source in enumerate(names):
                scaled(f"{width}.{block}.{layer}", f"conv{source}/conv{layer + 1}")
    return parts
