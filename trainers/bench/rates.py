"""What this machine's matrix products reach: the yardstick for the phases."""

from __future__ import annotations

import torch

from .measure import Clock

SIDES = {"cpu": 512, "other": 8192}
RUNS = {"cpu": 3, "other": 10}


@torch.no_grad()
def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of the product of two square matrices: the best of three rounds after a warm-up.

    8192 rows on a GPU, 512 on a CPU. float32 as torch is set in this process (TF32 is off by default).
    """
    kind = "cpu" if device.type == "cpu" else "other"
    side, runs = SIDES[kind], RUNS[kind]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    a @ b
    clock, best = Clock(device), 0.0
    for _ in range(3):
        clock.start()
        for _ in range(runs):
            a @ b
        clock.stop()
        best = max(best, 2 * side**3 * runs / clock.wall)
    return best


def matmul_rates(device: torch.device) -> dict[str, float]:
    """`matmul_rate` of float32 and bfloat16, by the type's name."""
    return {name: matmul_rate(getattr(torch, name), device) for name in ("float32", "bfloat16")}
