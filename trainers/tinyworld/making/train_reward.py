"""Make TinyWorld's identity reward again: `python -m trainers reward train tinyworld --out FOLDER`.

1. All weights of a small, randomly initialised Qwen2.5-VL are trained to compare portraits with clips. This takes the
   place of the real model's pre-training. It is written to FOLDER/base_model.
2. The reward is trained on that base by the released recipe (LoRA on the language model, the rest in full) and written
   to FOLDER/identity_reward in the released layout, with the cost of both stages and the accuracy on held-out pairs.
"""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ...config import TINYWORLD_WEIGHTS
from ...files import write_atomic
from ...preference.pairs import Pair, accuracy
from ...preference.train import RewardTraining, Trained, train_base, train_reward
from ...rewards.identity import IdentityReward
from .preference_pairs import PairStream, held_out_pairs
from .reward_base import build_reward_base
from .sampled_pairs import CLOSELY_ALIKE, Mixed, sampled_pairs

BASE_SHARE = 0.7
"""Share of time and steps for the base."""
REWARD_RATE = 3e-4
"""Learning rate of a reward that starts from the base."""
EASY = 0.35
"""Share of the base's time and steps over which its pairs change from easy ones to those of the reward."""


def make_reward(
    out_dir: Path | str,
    device: str = "cuda",
    minutes: float = 8.0,
    steps: int = 6000,
    batch: int = 128,
    held_out: int = 1000,
    seed: int = 1,
    policy: Path | None = None,
    sampled: int = 400,
    base: Path | None = None,
    loras: Sequence[Path] = (),
    few: int = 0,
    start: Path | None = None,
    learning_rate: float = REWARD_RATE,
) -> dict[str, Any]:
    """Make base and reward in `out_dir` within `minutes` and `steps` of training, whichever ends first.

    `batch` is in pairs. Two thirds of the reward's pairs are of videos of `sampled` items by `policy`, a folder
    (default: TinyWorld's own), and of as many items by it with each of `loras`; with 0 all are rendered. `base`: the
    folder of a base that is there already; all the time goes to the reward then. `few`: train on so many rendered pairs
    again and again, which makes a reward that is easily hacked. `start`: a reward of `base` to continue, with a lower
    `learning_rate`. Returns, and writes to `identity_reward/made.json`, steps, seconds and the accuracy of the written
    files on `held_out` pairs.
    """
    out_dir, started = Path(out_dir), time.time()
    half = torch.device(device).type == "cuda"
    validation = held_out_pairs(max(1, min(256, held_out)), seed + 2_000_003, device)
    result: dict[str, Any] = {"seed": seed, "batch": batch}
    share = 1.0 if base else 1 - BASE_SHARE

    def settings(share: float, **changes: Any) -> RewardTraining:
        count = max(1, round(steps * share))
        return RewardTraining(
            steps=count,
            seconds=minutes * 60 * share,
            batch_size=batch,
            weight_decay=0.01,
            seed=seed,
            mixed_precision=half,
            storage=torch.float16,
            evaluate_every=max(1, count // 6),
            **changes,
        )

    if base is None:
        base = out_dir / "base_model"
        training = settings(BASE_SHARE, learning_rate=1e-3, warmup=0.03, decay=0.5)
        result["base"] = asdict(
            _make_base(base, PairStream(batch, seed, device, easy=1.0), training, device, validation)
        )
    pairs: PairStream | Mixed | list[Pair] = PairStream(batch, seed + 1, device)
    if few:
        pairs, sampled = PairStream(few, seed + 1, device).sample(), 0
    sampler = policy or TINYWORLD_WEIGHTS / "vace"
    if sampled:
        closely = {"each": 4, "alike": CLOSELY_ALIKE, "altered": True}
        seen = [
            sampled_pairs(sampler, sampled, 1 + i, device, lora=lora, **closely)
            for i, lora in enumerate((None, *loras))
        ]
        pairs = Mixed(pairs, [pair for part in seen for pair in part], seed)
    made = train_reward(
        base,
        pairs,
        out_dir / "identity_reward",
        settings(share, learning_rate=learning_rate, warmup=0.05, decay=0.7, rank=16, alpha=32, dropout=0.0),
        device,
        validation,
        _printer("reward"),
        start,
    )
    result["reward"] = asdict(made)
    reward = IdentityReward.load(out_dir / "identity_reward", base, device=device)
    result["held_out"] = asdict(accuracy(reward, held_out_pairs(held_out, device=device)))
    for i, lora in enumerate((None, *loras) if sampled else ()):
        unseen = sampled_pairs(sampler, max(1, sampled // 4), 1001 + i, device, lora=lora)
        result[f"held_out_sampled{f'_lora_{i}' if lora else ''}"] = asdict(accuracy(reward, unseen))
    result["total_seconds"] = round(time.time() - started)
    result["device"] = torch.cuda.get_device_name() if half else platform.processor() or "cpu"
    text = json.dumps(result, indent=1)
    write_atomic(out_dir / "identity_reward" / "made.json", text + "\n")
    print(text)
    return result


def _make_base(
    folder: Path, stream: PairStream, training: RewardTraining, device: torch.device | str, validation: Sequence[Pair]
) -> Trained:
    """Train a random base, at first on easy pairs, and write it to `folder`."""
    report = _printer("base")

    def reduce_easy(event: dict[str, Any]) -> None:
        if "loss" in event:
            spent = max(event["step"] / training.steps, event["seconds"] / training.seconds)
            stream.easy = max(0.0, 1 - spent / EASY)
        report(event)

    with tempfile.TemporaryDirectory() as scratch:
        random_base = build_reward_base(scratch, seed=training.seed)
        return train_base(random_base, stream, folder, training, device, validation, reduce_easy)


def _printer(name: str) -> Callable[[dict[str, Any]], None]:
    """A function that prints the events of a training under this name."""
    losses: list[float] = []

    def report(event: dict[str, Any]) -> None:
        if "accuracy" in event:
            found = event["accuracy"]
            print(
                f"{name} step {event['step']} held-out {found['without_ties']:.3f} "
                f"(with ties {found['with_ties']:.3f})",
                flush=True,
            )
        else:
            losses.append(event["loss"])
            if event["step"] % 50 == 0:
                mean = sum(losses) / len(losses)
                losses.clear()
                print(f"{name} step {event['step']} loss {mean:.4f} {event['seconds']:.0f}s", flush=True)

    return report
