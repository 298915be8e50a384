"""`reward choose`: which pairs are worth a vote first."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..config import RewardConfig
from ..errors import UserError


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder of pairs")
    parser.add_argument("--reward", required=True, help="a reward checkpoint's folder, or `tinyworld`")
    parser.add_argument("--base-model", help="the Qwen2.5-VL folder, if the checkpoint does not name it")


def main(options: Namespace) -> int:
    """Write the order in which the voting dialog shows the pairs without a vote."""
    import torch

    from ..preference.folder import PairFolder
    from ..preference.stored import StoredPairs, least_sure_first
    from ..preference.voting import write_order
    from ..rewards.load import load_reward
    from .progress import quiet_libraries

    quiet_libraries()
    folder = PairFolder(options.folder)
    pairs = StoredPairs.unvoted(folder)
    if not len(pairs):
        raise UserError(f"{folder.path} has no pair without a vote; add some with `reward pairs`")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = "bfloat16" if device.type == "cuda" and options.reward != "tinyworld" else "float32"
    reward = load_reward(RewardConfig(source=options.reward, base_model=options.base_model, dtype=dtype), device)
    order = least_sure_first(reward, pairs)
    write_order(folder, order, options.reward)
    print(f"{len(order)} pairs without a vote are asked in a new order, the least sure one first")
    return 0
