"""Whether votes on the pairs that a reward is least sure of teach it more than votes on random ones.

`python -m trainers.tinyworld.making.active FOLDER [--seeds N]` trains, for either way of choosing, rewards of 40, 80, …
200 votes with 10% mistakes, of a pool of pairs that TinyWorld's VACE sampled. Each is measured on the same held-out
pairs without ties. It writes FOLDER/choice.json and FOLDER/choice.png and prints the table.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ...config import TINYWORLD_WEIGHTS
from ...files import atomic_file, write_atomic
from ...pictures.layout import BLUE, FAINT, INK, ORANGE, PAPER
from ...preference.pairs import Pair, agreement, score_pairs
from ...preference.recipe import RECIPES, RewardTraining
from ...preference.train import train_reward
from ...rewards.identity import IdentityReward
from .votes import VERDICTS, decided_pairs, pairs_to_vote_on, votes_with_mistakes

BASE = TINYWORLD_WEIGHTS / "reward" / "base_model"
WAYS = ("random", "least sure first")
LABELS = {verdict: label for label, verdict in VERDICTS.items()}


def main(
    folder: Path,
    seeds: int = 5,
    pool: int = 900,
    step: int = 40,
    most: int = 200,
    held_out: int = 500,
    device: str = "cpu",
) -> dict[str, list[list[float]]]:
    """Accuracies by way of choosing, [seeds][rounds]."""
    folder.mkdir(parents=True, exist_ok=True)
    candidates = pairs_to_vote_on(pool, 60_000, device)
    test = decided_pairs(held_out, 70_000, device)
    found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for seed in range(seeds):
        votes = [LABELS[verdict] for verdict in votes_with_mistakes(candidates, 0.1, False, seed)]
        voted = [replace(pair, label=label) for pair, label in zip(candidates, votes, strict=True)]
        first = random.Random(seed).sample(range(len(voted)), step)
        for way in WAYS:
            found[way].append(_curve(voted, test, first, way, seed, most, step, folder / "reward", device))
            print(f"seed {seed}, {way}: " + ", ".join(f"{value:.3f}" for value in found[way][-1]), flush=True)
            write_atomic(folder / "choice.json", json.dumps(found, indent=1))
    _plot(found, step, folder / "choice.png")
    for way, curves in found.items():
        means = np.mean(curves, 0)
        print(f"{way:>18}: " + ", ".join(f"{(i + 1) * step} votes {value:.1%}" for i, value in enumerate(means)))
    gaps = np.subtract(found[WAYS[1]], found[WAYS[0]])[:, 1:].mean(1)
    print(f"least sure less random, mean over rounds, by seed: {', '.join(f'{gap:+.3f}' for gap in gaps)}")
    return found


def _curve(
    pool: Sequence[Pair],
    test: Sequence[Pair],
    first: Sequence[int],
    way: str,
    seed: int,
    most: int,
    step: int,
    folder: Path,
    device: str,
) -> list[float]:
    """The accuracies after 40, 80, … votes; both ways begin with the same `first` ones."""
    chosen, accuracies = list(first), []
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        recipe = dict(RECIPES["tiny"])
        steps = max(1, round(recipe.pop("epochs") * len(chosen) / recipe["batch_size"]))
        training = RewardTraining(steps=steps, seed=seed + 1, **recipe)
        train_reward(BASE, [pool[i] for i in chosen], folder, training, device)
        reward = IdentityReward.load(folder, BASE, device=device)
        accuracies.append(agreement(score_pairs(reward, test)).without_ties)
        if len(chosen) >= most:
            return accuracies
        rest = sorted(set(range(len(pool))) - set(chosen))
        if way == "random":
            chosen += random.Random(f"{seed} {len(chosen)}").sample(rest, step)
        else:
            scored = score_pairs(reward, [pool[i] for i in rest])
            order = (scored.reward_a - scored.reward_b).abs().argsort().tolist()
            chosen += [rest[i] for i in order[:step]]


def _plot(found: dict[str, list[list[float]]], step: int, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.8), dpi=150, facecolor=PAPER, layout="constrained")
    axes = figure.subplots()
    for (way, curves), colour in zip(found.items(), (FAINT, BLUE), strict=True):
        votes = step * (1 + np.arange(len(curves[0])))
        for curve in curves:
            axes.plot(votes, curve, color=colour, alpha=0.25, linewidth=1)
        axes.plot(votes, np.mean(curves, 0), color=colour, linewidth=2, marker="o", label=way)
    axes.axhline(0.8, color=ORANGE, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlabel("votes", fontsize=8.5, color=INK)
    axes.set_ylabel("accuracy on held-out pairs without ties", fontsize=8.5, color=INK)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    with atomic_file(path, sync=False) as aside:
        figure.savefig(aside, format="png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pool", type=int, default=900)
    parser.add_argument("--step", type=int, default=40)
    parser.add_argument("--most", type=int, default=200)
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    main(**vars(parser.parse_args()))
