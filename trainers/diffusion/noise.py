"""Seeds and unit noise, the same on every platform, device and number of processes."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts, the same on every platform."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def noise_generators(seeds: list[int]) -> list[torch.Generator]:
    """One CPU generator per sample, so that a sample's noise depends neither on its batch nor on the device."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def unit_noise(generators: list[torch.Generator], shape: tuple[int, ...], device: torch.device) -> Tensor:
    """The next unit Gaussian noise of each sample: float32 [B, *shape]."""
    return torch.stack([torch.randn(shape, generator=g) for g in generators]).to(device)
