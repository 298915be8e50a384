"""`reward compare`: two rewards on the same held-out pairs, and the clips about which they disagree."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..config import RewardConfig
from ..errors import UserError
from .numbers import number_between
from .reward_train import TINYWORLD, TINYWORLD_BASE, accuracy_table, held_out_share
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

    from ..pictures.layout import save_png
    from ..preference.compare import compare_rewards, comparison_board
    from ..preference.folder import PairFolder
    from ..preference.pairs import agreement, score_pairs
    from ..preference.stored import Part, StoredPairs, hold_out
    from ..rewards.folder import find_reward
    from ..rewards.load import load_reward
    from .progress import quiet_libraries

    quiet_libraries()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stored = StoredPairs(PairFolder(options.pairs))
    if not len(stored):
        raise UserError(f"{options.pairs} has no pair with a verdict; vote first")
    try:
        pairs = Part(stored, hold_out(stored.records, options.held_out)[1] if options.held_out else range(len(stored)))
    except UserError as error:
        raise UserError(f"{error}; or compare on all of them with --held-out 0") from error
    configs = [
        RewardConfig(
            source=source,
            base_model=str(TINYWORLD_BASE) if base == TINYWORLD else base,
            dtype="bfloat16" if device.type == "cuda" and source != TINYWORLD else "float32",
        )
        for source, base in zip((options.old, options.new), (bases * 2)[:2], strict=True)
    ]
    for config in configs:  # both, before the first is scored
        find_reward(config)
    scores, names = [], _names(options.old, options.new)
    for config, name in zip(configs, names, strict=True):
        reward = load_reward(config, device)
        scores.append(score_pairs(reward, pairs))
        print(f"{name}\n{accuracy_table(agreement(scores[-1]))}\n")
        del reward
    found = compare_rewards(*scores)
    ties = len(found.places) - found.decided
    print(f"they prefer different clips of {len(found.places)} of {len(pairs)} pairs, {ties} of them ties by the votes")
    if not found.places:
        return 0
    right = {f"{name} agrees": count for name, count in zip(names, found.right, strict=True)}
    print(markdown_table([{"verdict": "decided"} | right]))
    print(f"picture: {save_png(comparison_board(found, pairs, names, options.shown), options.picture)}")
    return 0


def _names(old: str, new: str) -> tuple[str, str]:
    """The folders' names; with those of the folders above them where they are equal."""
    first, second = Path(old), Path(new)
    if first.name != second.name:
        return first.name, second.name
    return f"{first.parent.name}/{first.name}", f"{second.parent.name}/{second.name}"
