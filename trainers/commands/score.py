"""`score`: the identity reward of clips, and which of two is better."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..config import make_config
from ..errors import UserError
from ..pictures.clips import read_clip
from ..pictures.reading import read_pixels
from ..rewards.folder import find_reward
from .options import refuse_misspelt
from .progress import quiet_libraries
from .tables import markdown_table

OPTIONS = {"reward.source": "--reward", "reward.base_model": "--base-model", "reward.fps": "--fps"}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("clip", nargs="*", type=Path, help="animation (GIF, WebP), folder of frames, or video file")
    parser.add_argument(
        "--reference",
        nargs="+",
        type=Path,
        required=True,
        metavar="IMAGE",
        help="one picture per person; after the clips",
    )
    parser.add_argument("--reward", default="tinyworld", help="a reward checkpoint's folder, or `tinyworld` (default)")
    parser.add_argument("--base-model", help="the Qwen2.5-VL folder, if the checkpoint does not name it")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of the reward model (default: float32)"
    )
    parser.add_argument(
        "--fps",
        type=float,
        help="frames per second: part of the score (default: the file's, 10 for a folder of frames)",
    )


def main(options: Namespace) -> int:
    """Print the score of every clip; of two, the probability that one is preferred."""
    given = {"source": options.reward, "base_model": options.base_model, "dtype": options.dtype, "fps": options.fps}
    changes = {name: value for name, value in given.items() if value is not None}
    chosen = make_config(changes={"reward": changes}, options=OPTIONS)
    refuse_misspelt(chosen, OPTIONS)
    config = chosen.with_absolute_paths().reward
    find_reward(config)
    if not options.clip:
        raise UserError("no clip is given: name the clips before --reference, which takes all files that follow it")
    clips = [read_clip(path) for path in options.clip]
    pictures = [read_pixels(path) for path in options.reference]
    rates = [options.fps or found or config.fps for _, found in clips]

    from accelerate import PartialState

    from ..rewards.identity import preference_probabilities
    from ..rewards.load import load_reward
    from ..rewards.scoring import short_clip_warning

    quiet_libraries()
    reward = load_reward(config, PartialState().device)
    named = {str(path): frames for path, (frames, _) in zip(options.clip, clips, strict=True)}
    if warning := short_clip_warning(named, reward.collator.frames):
        print(f"warning: {warning}", file=sys.stderr)
    scores = reward.score([frames for frames, _ in clips], [pictures] * len(clips), fps=rates).tolist()
    print(
        markdown_table(
            [
                {"clip": str(path), "score": f"{score:.4f}", "frames": len(frames), "fps": f"{rate:g}"}
                for path, score, (frames, _), rate in zip(options.clip, scores, clips, rates, strict=True)
            ]
        )
    )
    if len(scores) == 2:
        first, tie, second = (p.item() for p in preference_probabilities(*scores))
        print(f"preferred: the first {first:.1%}, neither {tie:.1%}, the second {second:.1%}")
    return 0
