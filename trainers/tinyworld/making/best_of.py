"""What choosing the best of several videos by the reward gains in TinyWorld, by its oracle.

`python -m trainers.tinyworld.making.best_of [ITEMS]`. The oracle takes the place of the face report: its identity has
the same definition. Where it takes part in the choice as well, its gain is the most that a perfect report could bring.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch

from ...config import make_config
from ...faces.ranking import best_first
from ...grpo.evaluate import Measurement, held_out_videos, measure
from ...policies.load import policy_of
from ...rewards.load import load_reward
from ...runs.inputs import tinyworld_judge
from ..prompts import tiny_prompt_set

MOST, COUNTS = 8, (2, 4, 8)


def gains(found: list[Measurement], count: int) -> dict[str, np.ndarray]:
    """Per item, by how the best of the first `count` videos is chosen: oracle identity of it less the mean of all."""
    identity = np.array([one.identity[:] for one in found[:count]])
    rewards = np.array([one.rewards[:] for one in found[:count]])
    chosen: dict[str, list[float]] = {"reward": [], "reward and oracle": [], "oracle": []}
    for item in range(identity.shape[1]):
        own, scores = identity[:, item].tolist(), rewards[:, item].tolist()
        for name, order in (
            ("reward", best_first(None, scores)),
            ("reward and oracle", best_first(own, scores)),
            ("oracle", best_first(own, None)),
        ):
            chosen[name].append(own[order[0]] - float(np.mean(own)))
    return {name: np.array(values) for name, values in chosen.items()}


def main(items: int) -> None:
    started = time.process_time()
    config = make_config("tiny")
    policy, reward = policy_of(config.policy), load_reward(config.reward)
    prompts = list(tiny_prompt_set("held_out", items))
    found = []
    for seed in range(MOST):
        own = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"seed": seed})})
        with torch.no_grad():
            found.append(measure(reward, held_out_videos(policy, prompts, own), prompts, own, tinyworld_judge))
    mean = np.mean([one.identity for one in found])
    rng = np.random.default_rng(0)
    print(f"mean identity by the oracle {mean:.3f}, {items} items, {time.process_time() - started:.0f} s of CPU time")
    print("| best of | chosen by | gain of identity by the oracle (95% CI) |\n|---|---|---|")
    for count in COUNTS:
        for name, values in gains(found, count).items():
            means = rng.choice(values, (4000, len(values))).mean(1)
            low, high = np.percentile(means, [2.5, 97.5])
            print(f"| {count} | {name} | {values.mean():+.3f} ({low:+.3f} to {high:+.3f}) |")


if __name__ == "__main__":
    main(int((sys.argv[1:2] or [48])[0]))
