"""`reward proof`: votes become a reward, and the reward improves the policy, in TinyWorld, whose oracle measures it.

1. TinyWorld's VACE samples pairs, and the oracle votes on them, with mistakes. The control has the same votes in
   several random orders.
2. A reward is trained on each, by the recipe `tiny`, and measured on held-out pairs of other people.
3. GRPO trains the policy against the reward, and against that of the first random order; the oracle measures it on
   held-out items under noise of its own.
"""

from __future__ import annotations

import json
import statistics
import time
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import TINYWORLD_WEIGHTS, TrainConfig, make_config
from ..errors import UserError
from ..files import write_atomic
from .numbers import number_between
from .options import add_runs_folder, add_set, parse_settings
from .tables import markdown_table

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ..preference.pairs import Accuracy, Pair

ARMS = {"voted": False, "shuffled": True}
BASE = TINYWORLD_WEIGHTS / "reward" / "base_model"
LEAST_ACCURACY = 0.8
LEAST_CONTROLS = 4
"""TinyWorld's base was made to compare people: random votes give a reward that prefers the better clips or the worse
ones, so that one control shows nothing; the mean of several is at chance."""
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
"""Half a 95% interval of a mean of 2, 3, ... values, in standard errors (Student's t); of more values at most 2.2."""
EVALUATION_SEED = 31
OF_ORDER = 1000  # between the seeds of two random orders
FIXED = ("votes", "mistakes", "held_out", "epochs", "learning_rate", "set")
"""Options that a folder of results belongs to: what is there already is not measured again."""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="default: both")
    parser.add_argument("--votes", type=number_between(8, 10**5), default=200, help="default: 200")
    parser.add_argument(
        "--mistakes", type=number_between(0, 1, float), default=0.1, help="share of them (default: 0.1)"
    )
    parser.add_argument(
        "--held-out", type=number_between(8, 10**5), default=500, help="pairs without ties (default: 500)"
    )
    parser.add_argument("--epochs", type=number_between(0.1, 100, float), help="of the reward (default: the recipe's)")
    parser.add_argument("--learning-rate", type=number_between(1e-9, 1, float), help="of it (default: the recipe's)")
    parser.add_argument("--iterations", type=number_between(1, 1000), default=6, help="of GRPO (default: 6)")
    parser.add_argument("--items", type=number_between(2, 10**4), default=96, help="the oracle measures (default: 96)")
    parser.add_argument(
        "--shuffles",
        type=number_between(1, 100),
        default=LEAST_CONTROLS,
        help=f"random orders of a seed's votes (default: {LEAST_CONTROLS})",
    )
    parser.add_argument(
        "--seeds",
        type=number_between(0, 10**6),
        nargs="+",
        default=[0],
        help=f"default: 0; {LEAST_CONTROLS} or more to judge GRPO on shuffled votes",
    )
    parser.add_argument("--jobs", type=number_between(1, 64), default=2, help="runs of GRPO at a time (default: 2)")
    add_set(parser)
    add_runs_folder(parser, "runs/reward-proof")


def main(options: Namespace) -> int:
    """Do all of it, print the table and write it to `<runs>/proof.md`; 0 if every claim holds, else 1.

    Repeated after an interruption it continues: with the seed, the reward and the run of GRPO that it was at.
    """
    from accelerate import PartialState

    from ..grpo.intervals import relative_gain
    from ..preference.train import train_reward
    from .progress import quiet_libraries

    quiet_libraries()
    started, spent = time.monotonic(), time.process_time()
    device, root = PartialState().device, options.runs
    _require_same_options(root, options)
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    trials = [(arm, order) for arm in options.arms for order in range(options.shuffles if ARMS[arm] else 1)]
    for seed in options.seeds:
        held_out = None
        for arm, order in trials:
            folder = root / f"{arm}-{seed}{f'-{order}' if order else ''}"
            if not (folder / "measured.json").is_file():
                if held_out is None:
                    held_out, pairs = _sampled(options, seed, device)
                own = seed + OF_ORDER * order
                _train(folder, arm, pairs, held_out, options, own, device, train_reward)
            found = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
            rows.setdefault((arm, seed), []).append(found)
            print(f"{arm}, seed {seed}: {found['without_ties']:.1%} of the held-out pairs", flush=True)
    configs = {f"{arm}-{seed}": _config(root / f"{arm}-{seed}", options, seed) for arm, seed in rows}
    before, after = _improve(configs, options, device)
    table, claims = [], []
    for arm in options.arms:
        found = [row for seed in options.seeds for row in rows[arm, seed]]
        own = [row["without_ties"] for row in found]
        gain = relative_gain(before, _stacked(after, arm, options.seeds))
        table.append(
            {
                "votes": arm,
                "rewards": len(own),
                "accuracy on held-out pairs": ", ".join(f"{value:.1%}" for value in own),
                "identity by the oracle": f"{before.mean():.3f} -> {before.mean() * (1 + gain.value):.3f}",
                "gain (95% CI)": f"{gain.value:+.1%} ({gain.low:+.1%} to {gain.high:+.1%})",
                "CPU s of a reward": f"{statistics.fmean(row['cpu_seconds'] for row in found):.0f}",
            }
        )
        if ARMS[arm]:
            if len(own) >= LEAST_CONTROLS:
                claims.append(_at_chance(own))
            if len(options.seeds) >= LEAST_CONTROLS:
                claims.append(
                    ("shuffled votes: the policy gains nothing (interval contains or lies below 0)", gain.low <= 0)
                )
        else:
            text = (
                f"{options.votes} votes with {options.mistakes:.0%} mistakes: accuracy of at least {LEAST_ACCURACY:.0%}"
            )
            claims.append((text, min(own) >= LEAST_ACCURACY))
            claims.append(("the policy gains identity by the oracle (interval above 0)", gain.low > 0))
    seconds, cpu = time.monotonic() - started, time.process_time() - spent
    lines = [markdown_table(table), "", *(f"- {'holds' if holds else 'FAILS'}: {claim}" for claim, holds in claims), ""]
    lines.append(f"{seconds:.0f} s in all; {cpu:.0f} s of the CPU in this process, without GRPO's.")
    text = "\n".join(lines) + "\n"
    write_atomic(root / "proof.md", text)
    print(text)
    return 0 if all(holds for _, holds in claims) else 1


def _require_same_options(root: Path, options: Namespace) -> None:
    """Make the folder. Raises UserError for one with the results of other options."""
    given, file = {name: getattr(options, name) for name in FIXED}, root / "options.json"
    root.mkdir(parents=True, exist_ok=True)
    if file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
        if changed := ["--" + name.replace("_", "-") for name in FIXED if known.get(name) != given[name]]:
            raise UserError(
                f"{root} holds the results of another {' and '.join(changed)}; give the same, or another folder as "
                "--runs"
            )
    write_atomic(file, json.dumps(given, indent=1) + "\n")


def _at_chance(accuracies: list[float]) -> tuple[str, bool]:
    """Of several shuffles: whether the 95% interval of their mean accuracy contains chance."""
    mean, count = statistics.fmean(accuracies), len(accuracies)
    width = (*STUDENT, *[2.2] * count)[count - 2] * statistics.stdev(accuracies) / count**0.5
    text = f"shuffled votes: mean accuracy {mean:.1%} (95% CI {mean - width:.1%} to {mean + width:.1%}) contains chance"
    return text, abs(mean - 0.5) <= width


def _sampled(options: Namespace, seed: int, device: torch.device) -> tuple[list[Pair], list[Pair]]:
    from ..tinyworld.making.votes import decided_pairs, pairs_to_vote_on

    print(f"sampling {options.votes} pairs to vote on and {options.held_out} held out", flush=True)
    # Of other items than GRPO trains on, and than the reward that comes with TinyWorld was measured on.
    held_out = decided_pairs(options.held_out, 50_000 + 100 * seed, device)
    return held_out, pairs_to_vote_on(options.votes, 40_000 + seed, device)


def _train(folder: Path, arm: str, pairs, held_out, options: Namespace, seed: int, device, train_reward) -> None:
    """A folder with votes, a reward of them, and its accuracy, in `measured.json`."""
    import shutil

    from ..preference.recipe import RECIPES, RewardTraining
    from ..preference.stored import StoredPairs
    from ..tinyworld.making.votes import votes_with_mistakes, write_votes

    shutil.rmtree(folder, ignore_errors=True)
    spent = time.process_time()
    votes = votes_with_mistakes(pairs, options.mistakes, ARMS[arm], seed)
    voted = StoredPairs(write_votes(folder / "pairs", pairs, votes))
    recipe = dict(RECIPES["tiny"])
    epochs = options.epochs or recipe["epochs"]
    del recipe["epochs"]
    recipe["learning_rate"] = options.learning_rate or recipe["learning_rate"]
    steps = max(1, round(epochs * len(voted) / recipe["batch_size"]))
    training = RewardTraining(steps=steps, seed=seed + 1, **recipe)
    made = train_reward(BASE, voted, folder / "reward", training, device, held_out)
    found: Accuracy = made.accuracy
    known = asdict(found) | {"seconds": made.seconds, "cpu_seconds": time.process_time() - spent}
    write_atomic(folder / "measured.json", json.dumps(known, indent=1))


def _config(folder: Path, options: Namespace, seed: int) -> TrainConfig:
    from ..config.presets import merge

    own = {
        "iterations": options.iterations,
        "seed": seed,
        "reward": {"source": str((folder / "reward").resolve()), "base_model": str(BASE)},
        "evaluation": {"items": 8, "every": 1000},
        "checkpoint": {"every": 1000},
    }
    return make_config("tiny", merge(own, parse_settings(options.set)))


def _improve(
    configs: dict[str, TrainConfig], options: Namespace, device: torch.device
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The oracle's identity [1, I] of the base policy, and of the policy of each run."""
    from ..grpo.wide import WideMeasure
    from ..runs.batch import RunBatch
    from ..runs.inputs import run_inputs

    root, first = options.runs, next(iter(configs.values()))
    evaluation = first.evaluation.model_copy(update={"items": options.items})
    wide = first.model_copy(update={"evaluation": evaluation})
    inputs = run_inputs(wide)
    meter = WideMeasure(wide, inputs.held_out.items[: options.items], [EVALUATION_SEED], inputs.judge, device)
    before = meter.measure(None, root / "base.json")["identity"]
    after = {}
    batch = RunBatch(root / "grpo", configs, min(options.jobs, len(configs)))
    for name, run in batch.finish(lambda line: print(line, flush=True)):
        after[name] = meter.measure(run.newest().path, run.path / "evaluation" / "oracle.json")["identity"]
    return before, after


def _stacked(after: dict[str, np.ndarray], arm: str, seeds: list[int]) -> np.ndarray:
    import numpy as np

    return np.stack([after[f"{arm}-{seed}"] for seed in seeds])
