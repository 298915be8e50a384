"""Which frames of a clip the reward reads, to what size they are resized, and how long a step in time is.

The numbers are those of the released model's own preprocessing (alibaba/identity-grpo `vace_reward/vision_process.py`
with transformers 4.51.3); they are part of the score.
"""

from __future__ import annotations

import math

import numpy as np

from ..errors import UserError

SIDE = 28
"""Side in pixels of one token: two patches of 14."""
IMAGE_MIN_PIXELS = 4 * SIDE * SIDE
VIDEO_MIN_PIXELS = 128 * SIDE * SIDE
MAX_PIXELS = 480 * 832
TEMPORAL_PATCH = 2


def frame_count(configured: float) -> int:
    """Frames used of every clip: the configured number rounded to an even one, half-even (5.0 gives 4)."""
    return max(TEMPORAL_PATCH, round(configured / TEMPORAL_PATCH) * TEMPORAL_PATCH)


def frame_indices(total: int, count: int = 4) -> list[int]:
    """`count` indices spread over a clip of `total` frames, first and last included; short clips repeat frames.

    Raises ValueError when the clip has no frame.
    """
    if total < 1:
        raise ValueError("a clip needs at least one frame")
    return [round(i) for i in np.linspace(0, total - 1, count).tolist()]


def seconds_per_step(total: int, fps: float, count: int = 4) -> float:
    """Seconds between two steps of the clip's patch grid, for a clip of `total` frames at `fps` frames per second.

    Raises UserError for an `fps` outside 0.01..1000.
    """
    if not 0.01 <= fps <= 1000:
        raise UserError(f"fps is {fps}; give a number of frames per second between 0.01 and 1000")
    return TEMPORAL_PATCH / (count / total * fps)


def time_position(step: int, seconds: float, tokens_per_second: float) -> int:
    """mRoPE time of a step of the clip's grid: the PRODUCT is floored (1.65 s at 2 tokens a second is time 3, not 2).

    float32 as the reference computes it, so that a product on the border of an integer falls on the same side.
    """
    return int(np.floor(np.float32(step) * np.float32(seconds) * np.float32(tokens_per_second)))


def resized(height: int, width: int, minimum: int, maximum: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) as multiples of 28 near the given size, with an area in [minimum, maximum] pixels.

    Sides are rounded half-even; an area out of bounds is scaled keeping the aspect, outwards from `minimum` (ceil) and
    inwards from `maximum` (floor). A side never falls below 28. Raises UserError when the aspect exceeds 200.
    """
    if max(height, width) > 200 * min(height, width):
        raise UserError(
            f"a picture of {height}x{width} is too narrow: one side is more than 200 times the other; crop it"
        )
    h, w = (max(SIDE, round(side / SIDE) * SIDE) for side in (height, width))
    if h * w > maximum:
        shrink = math.sqrt(height * width / maximum)
        h, w = (max(SIDE, math.floor(side / shrink / SIDE) * SIDE) for side in (height, width))
    elif h * w < minimum:
        grow = math.sqrt(minimum / (height * width))
        h, w = (math.ceil(side * grow / SIDE) * SIDE for side in (height, width))
    return h, w
