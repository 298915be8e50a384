"""`reward compare`: two rewards on the same held-out pairs, and the clips about which they disagree."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..config import RewardConfig
from ..errors import UserError
from .numbers import number_between
from .reward_train import accuracy_table, held_out_share
from .tables import markdown_table


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("old", help="a reward checkpoint's folder, or `tinyworld`")
    parser.add_argument("new", help="another one")
    parser.add_argument("pairs", type=Path, help="folder of pairs with votes")
    parser.add_argument(
        "--held-out",
        type=held_out_share,
        default=0.15,
        help="the share that `reward train` held out; 0: all (default: 0.15)",
    )
    parser.add_argument("--base-model", nargs="+", help="Qwen2.5-VL folder of both, or of each, if they do not name it")
    parser.add_argument("--shown", type=number_between(1, 100), default=12, help="pairs in the picture (default: 12)")
    parser.add_argument("--picture", type=Path, default=Path("disagreements.png"), metavar="PNG")


def main(options: Namespace) -> int:
    """Print both accuracies and how often they differ; write the picture of the pairs on which they do."""
    bases = options.base_model or [None]
    if len(bases) > 2:
        raise UserError(f"--base-model names {len(bases)} folders; give one for both rewards, or one for each")

    import torch

    from ..pictures.disagreements import Disagreement, disagreement_board
    from ..pictures.layout import save_png
    from ..preference.folder import PairFolder
    from ..preference.pairs import agreement, score_pairs
    from ..preference.stored import Part, StoredPairs, hold_out
    from ..rewards.load import load_reward
    from .progress import quiet_libraries

    quiet_libraries()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stored = StoredPairs(PairFolder(options.pairs))
    if not len(stored):
        raise UserError(f"{options.pairs} has no pair with a verdict; vote first")
    pairs = Part(stored, hold_out(stored.records, options.held_out)[1] if options.held_out else range(len(stored)))
    margins, names = [], _names(options.old, options.new)
    for source, base, name in zip((options.old, options.new), (bases * 2)[:2], names, strict=True):
        dtype = "bfloat16" if device.type == "cuda" and source != "tinyworld" else "float32"
        reward = load_reward(RewardConfig(source=source, base_model=base, dtype=dtype), device)
        scored = score_pairs(reward, pairs)
        margins.append((scored.reward_a - scored.reward_b).tolist())
        print(f"{name}\n{accuracy_table(agreement(scored))}\n")
        del reward
    labels = scored.labels.tolist()
    places = [i for i, (a, b) in enumerate(zip(*margins, strict=True)) if (a > 0) != (b > 0)]
    places.sort(key=lambda i: -abs(margins[0][i] - margins[1][i]))
    counts = [
        {"verdict": text, f"{names[0]} agrees": right[0], f"{names[1]} agrees": right[1]}
        for text, right in (("decided", _right(places, margins, labels)),)
    ]
    ties = sum(labels[i] == 0 for i in places)
    print(f"they prefer different clips of {len(places)} of {len(pairs)} pairs, {ties} of them ties by the votes")
    if not places:
        return 0
    print(markdown_table(counts))
    shown = []
    for i in places[: options.shown]:
        pair = pairs[i]
        clips = (pair.video_a, pair.video_b)
        shown.append(Disagreement(pair.references, clips, (margins[0][i], margins[1][i]), labels[i], pair.kind))
    head = (
        f"{len(shown)} of {len(places)} pairs on which {names[0]} and {names[1]} prefer different clips (+: prefers A)"
    )
    print(f"picture: {save_png(disagreement_board(shown, names, head), options.picture)}")
    return 0


def _right(places: list[int], margins: list[list[float]], labels: list[int]) -> list[int]:
    decided = [i for i in places if labels[i]]
    return [sum((part[i] > 0) == (labels[i] > 0) for i in decided) for part in margins]


def _names(old: str, new: str) -> tuple[str, str]:
    """The folders' names; with those of the folders above them where they are equal."""
    first, second = Path(old), Path(new)
    if first.name != second.name:
        return first.name, second.name
    return f"{first.parent.name}/{first.name}", f"{second.parent.name}/{second.name}"
