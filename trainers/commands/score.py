"""`score`: the identity reward of clips, and which of two is better."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..clips import read_clip, read_picture
from ..config import RewardConfig
from ..runs.table import table
from .progress import quiet_libraries


def main(clips: list[Path], references: list[Path], config: RewardConfig, fps: float | None) -> int:
    """Print the score of every clip; of two, the probability that one is preferred."""
    read = [read_clip(path) for path in clips]
    pictures = [np.asarray(read_picture(path)) for path in references]
    rates = [fps or found or config.fps for _, found in read]

    from accelerate import PartialState

    from ..rewards.identity import preference_probabilities
    from ..rewards.load import load_reward

    quiet_libraries()
    reward = load_reward(config, PartialState().device)
    scores = reward.score([frames for frames, _ in read], [pictures] * len(read), fps=rates).tolist()
    print(
        table(
            [
                {"clip": str(path), "score": f"{score:.4f}", "frames": len(frames), "fps": f"{rate:g}"}
                for path, score, (frames, _), rate in zip(clips, scores, read, rates, strict=True)
            ]
        )
    )
    if len(scores) == 2:
        first, tie, second = (p.item() for p in preference_probabilities(*scores))
        print(f"preferred: the first {first:.1%}, neither {tie:.1%}, the second {second:.1%}")
    return 0
